{
  # One .node per external library, so that a host without one of them still loads the rest.
  # `scripts/build-native --sanitize DIRECTORY` builds the addons under sanitizers.
  'variables': {
    'sanitize%': '<!(printf %s "${npm_config_sanitize:-}")',
    'has_libiscsi': '<!(pkg-config --exists libiscsi && echo 1 || echo 0)',
    'has_libvirt': '<!(pkg-config --exists libvirt && echo 1 || echo 0)',
  },
  'target_defaults': {
    'include_dirs': ['<!(node -p "require(\'node-addon-api\').include_dir")', 'native'],
    # A worker thread that ends while a call is settled lets nothing be thrown any more: that is no reason to abort.
    # Whatever a call from JS throws becomes a JS error, std::bad_alloc too.
    'defines': [
      'NAPI_VERSION=8', 'NODE_ADDON_API_DISABLE_DEPRECATED', 'NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS',
      'NODE_ADDON_API_CPP_EXCEPTIONS_ALL',
    ],
    'cflags': ['-fvisibility=hidden', '-fno-strict-aliasing', '-Wall', '-Wextra', '-Wno-unused-parameter', '-g'],
    'cflags_cc': ['-std=c++20', '-fexceptions'],
    'cflags_cc!': ['-fno-exceptions', '-fno-rtti', '-std=gnu++17', '-std=gnu++20'],
    # Node unloads an addon when its last environment ends; a thread that still runs its code would crash.
    'ldflags': ['-Wl,-z,nodelete', '-Wl,-z,relro', '-Wl,-z,now'],
    'conditions': [
      # The sanitizers see more, and fortified calls would hide from them what they intercept. Fortification needs an
      # optimised build; a compiler may define a lower level of its own.
      ['sanitize==""', {
        'defines': ['_GLIBCXX_ASSERTIONS'],
        'cflags': ['-fstack-protector-strong'],
        'configurations': {'Release': {'cflags': ['-U_FORTIFY_SOURCE', '-D_FORTIFY_SOURCE=3']}},
      }],
      ['sanitize!=""', {
        # Reports need lines alone, not values. Where nothing is optimised they take a third of the time to compile: -O3 is
        # node-gyp's own, and comes after ours.
        'cflags!': ['-g'],
        'configurations': {'Release': {'cflags!': ['-O3']}},
        # GCC cannot compare a function template argument with null under these three (its bug 71962), and node-addon-api does.
        'cflags': [
          '-fsanitize=<(sanitize)', '-fno-sanitize=null,nonnull-attribute,returns-nonnull-attribute',
          '-fno-omit-frame-pointer', '-O0', '-g1',
        ],
        'ldflags': ['-fsanitize=<(sanitize)'],
      }],
    ],
  },
  'targets': [
    # What several addons have in them, compiled once.
    {
      'target_name': 'shared',
      'type': 'static_library',
      'sources': ['native/napi/error.cc', 'native/sys/local_daemon.cc', 'native/sys/result.cc'],
    },
    {
      'target_name': 'bench_shared',
      'type': 'static_library',
      'sources': [
        'native/bench/binding.cc', 'native/bench/clock.cc', 'native/bench/cpu.cc', 'native/bench/engine_pread.cc',
        'native/bench/fit.cc', 'native/bench/histogram_object.cc', 'native/bench/job_from_js.cc',
        'native/bench/path_target.cc', 'native/bench/report_to_js.cc', 'native/bench/ring.cc', 'native/bench/run.cc',
        'native/bench/verify.cc',
      ],
    },
    {
      'target_name': 'tgt',
      'dependencies': ['shared'],
      'sources': ['native/tgt/binding.cc', 'native/tgt/control.cc'],
    },
    {
      'target_name': 'file',
      'dependencies': ['shared'],
      'sources': [
        'native/file/binding.cc', 'native/file/block.cc', 'native/file/create.cc', 'native/file/replace.cc',
      ],
    },
    {
      'target_name': 'net',
      'dependencies': ['shared'],
      'sources': ['native/net/binding.cc', 'native/net/device_io.cc', 'native/net/iscsi_stats.cc'],
    },
    {
      'target_name': 'iet',
      'dependencies': ['shared'],
      'sources': [
        'native/iet/binding.cc', 'native/iet/control.cc', 'native/iet/ietd.cc', 'native/iet/listing.cc',
      ],
    },
    {
      'target_name': 'configfs',
      'dependencies': ['shared'],
      'sources': ['native/configfs/binding.cc', 'native/configfs/batch.cc'],
    },
    {
      'target_name': 'bench',
      'dependencies': ['bench_shared', 'shared'],
      'sources': ['native/bench/addon.cc', 'native/bench/workers.cc'],
    },
  ],
  'conditions': [
    ['has_libiscsi==1', {
      'targets': [
        {
          'target_name': 'iscsi',
          'dependencies': ['bench_shared', 'shared'],
          'sources': [
            'native/iscsi/binding.cc', 'native/iscsi/data_path.cc', 'native/iscsi/negotiated.cc',
            'native/iscsi/session.cc',
            'native/bench/engine_iscsi.cc', 'native/bench/engine_libiscsi.cc', 'native/bench/engine_session.cc',
            'native/bench/workers.cc',
          ],
          'defines': ['LUNPATH_BENCH_LIBISCSI'],
          'libraries': ['<!@(pkg-config --libs libiscsi)'],
        },
      ],
    }],
    ['has_libvirt==1', {
      'targets': [
        {
          'target_name': 'libvirt',
          # gyp takes "lib" for a prefix and would call the file virt.node.
          'product_name': 'libvirt',
          'dependencies': ['shared'],
          'sources': [
            'native/libvirt/binding.cc', 'native/libvirt/connection.cc', 'native/libvirt/event_loop.cc',
          ],
          'libraries': ['<!@(pkg-config --libs libvirt)'],
        },
      ],
    }],
  ],
}
