import {statfs} from 'node:fs/promises'

/** File systems by the magic number that statfs(2) reports (linux/magic.h, statfs(2)). */
const names = new Map<number, string>([
  [0xef53, 'ext2/ext3/ext4'],
  [0x58465342, 'xfs'],
  [0x9123683e, 'btrfs'],
  [0xf2f52010, 'f2fs'],
  [0x2fc12fc1, 'zfs'],
  [0xca451a4e, 'bcachefs'],
  [0x01161970, 'gfs2'],
  [0x7461636f, 'ocfs2'],
  [0x01021994, 'tmpfs'],
  [0x858458f6, 'ramfs'],
  [0x794c7630, 'overlayfs'],
  [0x6969, 'nfs'],
  [0xff534d42, 'cifs'],
  [0xfe534d42, 'smb2'],
  [0x65735546, 'fuse'],
  [0x00c36400, 'ceph'],
  [0x01021997, '9p'],
  [0x4d44, 'vfat'],
  [0x2011bab0, 'exfat'],
  [0x7366746e, 'ntfs3'],
  [0x73717368, 'squashfs'],
  [0xe0f5e1e2, 'erofs'],
  [0x9660, 'iso9660'],
  [0x9fa0, 'proc'],
  [0x62656572, 'sysfs'],
  [0x62656570, 'configfs'],
  [0x64626720, 'debugfs'],
  [0x74726163, 'tracefs'],
  [0x73636673, 'securityfs'],
  [0x1cd1, 'devpts'],
  [0x63677270, 'cgroup2'],
  [0x27e0eb, 'cgroup'],
  [0xcafe4a11, 'bpf'],
  [0x958458f6, 'hugetlbfs'],
])

/** What cannot hold a pool, and why. The rest, unknown ones included, must show that they can. */
const unfit = new Map<string, string>([
  ...['vfat', 'exfat'].map(name => [name, 'has neither sparse files nor hard links'] as const),
  ...['squashfs', 'erofs', 'iso9660'].map(name => [name, 'is read-only'] as const),
  ...[
    'proc',
    'sysfs',
    'configfs',
    'debugfs',
    'tracefs',
    'securityfs',
    'devpts',
    'cgroup',
    'cgroup2',
    'bpf',
    'hugetlbfs',
  ].map(name => [name, 'is an interface of the kernel, not storage'] as const),
])

export interface FileSystem {
  /** `xfs`, or `unknown (0x…)`. */
  name: string
  totalBytes: number
  /** Bytes that an ordinary user can still write. */
  freeBytes: number
  /** Why it cannot hold a pool; undefined where it can. */
  unfit: string | undefined
}

/** The file system below `path`: one statfs(2). */
export async function examineFileSystem(path: string): Promise<FileSystem> {
  const {type, bsize, blocks, bavail} = await statfs(path)
  const name = names.get(type >>> 0) ?? `unknown (0x${(type >>> 0).toString(16)})`
  const totalBytes = blocks * bsize
  const noSize = totalBytes === 0 ? 'reports no size' : undefined
  return {name, totalBytes, freeBytes: bavail * bsize, unfit: unfit.get(name) ?? noSize}
}
