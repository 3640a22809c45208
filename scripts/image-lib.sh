# shellcheck shell=bash
# What scripts/guest-image and scripts/lab-image share: an image in .cache is made from a Debian kernel (downloaded as a
# package and unpacked, not installed), busybox and a script of ours, and remembers what it was made from.
#
# The script that sources this sets
#   image, cache   its name and directory
#   kernels        kernel packages, the first that apt knows is taken
#   outputs        what has to be in the cache
#   inputs         our files that it is made from
#   tools          programs that it needs beyond the common ones, with the package of each: depmod:kmod
# and defines build, which fills $work/image from $vmlinuz and $tree (the kernel's modules). Then it calls
# make_image "$@".

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
busybox=/bin/busybox

say() { printf '%s: %s\n' "$image" "$*"; }
die() { printf '%s: %s\n' "$image" "$*" >&2; exit 1; }

# What the image is made from and by. The kernel's version is noted in the stamp but a newer one is not chased.
fingerprint() { sha256sum "${inputs[@]}" "$0" "${BASH_SOURCE[0]}" "$busybox" | cut -d ' ' -f 1 | tr '\n' ' '; }

current() {
  local output made
  [[ -x $busybox && -r $cache/stamp ]] || return 1
  for output in "${outputs[@]}"; do [[ -s $cache/$output ]] || return 1; done
  made=$(sed -n 's/^inputs //p' "$cache/stamp")
  [[ $made == "$(fingerprint)" ]]
}

# The package of a versioned kernel that a metapackage stands for.
concrete_kernel() {
  LC_ALL=C apt-cache depends "$1" 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9][^ ]*\)$/\1/p'
  # At most one line comes: a metapackage stands for one kernel.
}

find_kernel() {
  local meta modules_package
  for meta in "${kernels[@]}"; do
    kernel=$(concrete_kernel "$meta")
    [[ -n $kernel ]] || continue
    packages=("$kernel")
    # Where a distribution keeps the modules in a package of their own.
    modules_package=$(LC_ALL=C apt-cache depends "$kernel" | sed -n 's/^ *Depends: \(linux-modules-[0-9][^ ]*\)$/\1/p')
    [[ -z $modules_package ]] || packages+=("${modules_package%%$'\n'*}")
    return 0
  done
  return 1
}

download() { (cd "$work/deb" && apt-get download -qq "${packages[@]}"); }

# Sets vmlinuz and tree.
fetch_kernel() {
  local deb directory found
  if ! find_kernel; then
    [[ $(id -u) == 0 ]] || die "apt knows no package ${kernels[0]}: run apt-get update as root"
    say 'apt knows no kernel package yet: running apt-get update'
    apt-get update -qq
    find_kernel || die "no package of ${kernels[*]} found in apt's sources"
  fi
  say "downloading ${packages[*]} (not installed, only unpacked)"
  mkdir "$work/deb" "$work/tree"
  if [[ $(id -u) == 0 ]] && id _apt >/dev/null 2>&1; then
    # apt downloads as user _apt, which must be able to write here.
    chmod 755 "$work"
    chown _apt "$work/deb"
  fi
  if ! download; then
    # A list that is days old names versions that the mirrors no longer have.
    [[ $(id -u) == 0 ]] || die "cannot download ${packages[*]}: run apt-get update as root and try again"
    apt-get update -qq
    find_kernel
    download || die "cannot download ${packages[*]}"
  fi
  for deb in "$work"/deb/*.deb; do
    dpkg-deb -x "$deb" "$work/tree"
    # shellcheck disable=SC2016 # the format is dpkg-deb's
    echo "package $(dpkg-deb --show --showformat '${Package} ${Version}' "$deb")" >>"$work/stamp"
    rm "$deb"
  done
  found=("$work"/tree/boot/vmlinuz-*)
  vmlinuz=${found[0]}
  [[ -s $vmlinuz ]] || die "${packages[*]} holds no /boot/vmlinuz-*"
  for directory in "$work"/tree/{,usr/}lib/modules/*; do [[ -d $directory/kernel ]] && tree=$directory; done
  [[ -n ${tree-} ]] || die "${packages[*]} holds no modules"
}

# The number of $2 bytes at offset $1 of the kernel's image, little-endian.
header() { od -An -v -j "$1" -N "$2" -t "u$2" --endian=little "$vmlinuz" | tr -d ' '; }

# Puts the kernel into $1, ready to run where that can be had.
take_kernel() { take_vmlinux "$1" || cp "$vmlinuz" "$1"; }

# Takes the ELF kernel out of the bzImage: QEMU enters it through PVH, where the bzImage would first unpack itself, which
# takes seconds under emulation. Field offsets are those of the boot protocol (the kernel's Documentation/x86/boot.rst:
# setup_sects at 0x1f1, payload_offset at 0x248, payload_length at 0x24c).
take_vmlinux() {
  local start
  [[ $(header 514 4) == "$((0x53726448))" ]] || return 1
  start=$((($(header 497 1) + 1) * 512 + $(header 584 4)))
  tail -c "+$((start + 1))" "$vmlinuz" | head -c "$(header 588 4)" >"$work/payload"
  case $(head -c 6 "$work/payload" | od -An -t x1 | tr -d ' \n') in
    # The length of the ELF follows the stream.
    fd377a585a00) xz --single-stream -dc "$work/payload" >"$1" || return 1 ;;
    02214c18*) head -c -4 "$work/payload" | lz4 -dc >"$1" || return 1 ;;
    *) return 1 ;;
  esac
  # Without the ELF note XEN_ELFNOTE_PHYS32_ENTRY (include/xen/interface/elfnote.h) QEMU refuses an ELF kernel.
  LC_ALL=C grep -aPq '^\x7fELF' <(head -c 4 "$1") &&
    LC_ALL=C grep -aPq '\x04\x00\x00\x00[\x04\x08]\x00\x00\x00\x12\x00\x00\x00Xen\x00' "$1"
}

# Makes the initramfs $1 from the init script $2, busybox and the modules that follow. They are given in the order of
# loading, which /modules/order repeats; "?" marks what some kernels have built in or do without.
make_initramfs() {
  local output=$1 init=$2 top=$work/initrd wanted name pattern file applet
  shift 2
  mkdir -p "$top"/{bin,dev,proc,sys,run,modules}
  for wanted in "$@"; do
    name=${wanted%\?}
    pattern=${name//[-_]/[-_]}
    file=$(find "$tree/kernel" -name "$pattern.ko*" -print -quit)
    if [[ -z $file ]]; then
      if [[ $wanted == "$name" ]] && ! grep -Eq "/$pattern\.ko$" "$tree/modules.builtin"; then
        die "$kernel has no module $name"
      fi
      continue
    fi
    case $file in
      *.ko) cp "$file" "$top/modules/$name.ko" ;;
      *.ko.xz) xz -dc "$file" >"$top/modules/$name.ko" ;;
      *.ko.zst) zstd -qdc "$file" >"$top/modules/$name.ko" ;;
      *.ko.gz) gzip -dc "$file" >"$top/modules/$name.ko" ;;
      *) die "unknown compression of $file" ;;
    esac
    echo "$name.ko" >>"$top/modules/order"
  done
  cp "$busybox" "$top/bin/busybox"
  while read -r applet; do
    [[ $applet == busybox ]] || ln -sf busybox "$top/bin/$applet"
  done < <("$busybox" --list)
  install -m 755 "$init" "$top/init"
  (cd "$top" && find . -mindepth 1 | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0) >"$output"
}

make_image() {
  local check='' tool name
  case ${1-} in
    '') ;;
    --check) check=yes ;;
    -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) die "unknown argument ${1@Q}; only --check is known" ;;
  esac

  if current; then exit 0; fi
  if [[ -n $check ]]; then
    say "what belongs into $cache is missing or out of date (made by: scripts/$image)"
    exit 1
  fi

  [[ $(uname -m) == x86_64 ]] || die "the image is made for x86_64 only, this machine is $(uname -m)"
  for tool in apt-get:apt apt-cache:apt dpkg-deb:dpkg cpio:cpio gzip:gzip lz4:lz4 xz:xz-utils "${tools[@]}"; do
    command -v "${tool%:*}" >/dev/null || die "${tool%:*} is missing: apt-get install ${tool#*:}"
  done
  [[ -x $busybox ]] || die "$busybox is missing: apt-get install busybox-static"

  work=$(mktemp -d "${TMPDIR:-/tmp}/lunpath-$image-XXXXXX")
  trap 'rm -rf "$work"' EXIT
  trap 'exit 130' INT TERM HUP

  echo "inputs $(fingerprint)" >"$work/stamp"
  echo "busybox $("$busybox" | sed -n '1s/ (.*//p')" >>"$work/stamp"
  fetch_kernel
  mkdir "$work/image"
  build

  # The stamp is written last: an interrupted run leaves an image that the next run makes again.
  mkdir -p "$cache"
  rm -f "$cache/stamp"
  for name in "${outputs[@]}"; do
    name=${name%%/*}
    rm -rf "${cache:?}/$name"
    cp -r "$work/image/$name" "$cache/$name"
  done
  install -m 644 "$work/stamp" "$cache/stamp"
  if [[ $(id -u) == 0 ]]; then
    # Made by root for a checkout that belongs to somebody else: its owner must be able to make it anew.
    chown --reference="$root" "$root/.cache"
    chown -R --reference="$root" "$cache"
  fi
  say "made $cache/{$(IFS=,; echo "${outputs[*]}")} ($(sed -n 's/^package //p' "$cache/stamp" | tr '\n' ' '))"
}
