{
  # CPU-only build by node-gyp, for installs without a prebuild. The full build is CMakeLists.txt.
  'variables': { 'onednn%': '<!(node scripts/onednn.cjs)' },
  'targets': [{
    'target_name': 'plumbline',
    'sources': ['src/no_cuda.cpp', '<!@(node -p "[\'core\', \'cpu\', \'model\', \'napi\'].flatMap((folder) => fs.readdirSync(\'src/\' + folder).filter((file) => file.endsWith(\'.cpp\')).map((file) => \'src/\' + folder + \'/\' + file)).join(\' \')")'],
    'include_dirs': ['<!(node -p "require(\'node-addon-api\').include_dir")'],
    'defines': [
      'NAPI_VERSION=8', 'NODE_ADDON_API_CPP_EXCEPTIONS', 'NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS',
      'PLUMBLINE_VERSION="<!(node -p "require(\'./package.json\').version")"',
    ],
    'cflags_cc!': ['-fno-exceptions', '-fno-rtti', '-std=gnu++17', '-std=gnu++20', '-O2'],
    'cflags_cc': ['-std=c++17', '-O3', '-ffp-contract=off', '-fvisibility=hidden', '-Wall', '-Wextra'],
    'xcode_settings': {
      'GCC_ENABLE_CPP_EXCEPTIONS': 'YES', 'GCC_ENABLE_CPP_RTTI': 'YES', 'CLANG_CXX_LANGUAGE_STANDARD': 'c++17',
      'GCC_OPTIMIZATION_LEVEL': '3', 'OTHER_CPLUSPLUSFLAGS': ['-ffp-contract=off', '-fvisibility=hidden'],
    },
    'conditions': [
      ['onednn==1', { 'defines': ['PLUMBLINE_ONEDNN'], 'libraries': ['-ldnnl'] }],
    ],
  }],
}
