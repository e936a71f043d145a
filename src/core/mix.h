#pragma once
// Hashes: of names, and splitmix64's finaliser, which makes of a counter or a key 64 bits that look independent of it.
#include <cstdint>
#include <string>

namespace plumbline {

#if defined(__CUDACC__)
__host__ __device__
#endif
inline uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

inline uint64_t hash_name(const std::string& name) {  // FNV-1a
  uint64_t hash = 0xcbf29ce484222325ull;
  for (unsigned char c : name) hash = (hash ^ c) * 0x100000001b3ull;
  return hash;
}

// Another key for each salt. 0 means none and stays 0.
inline uint64_t derive_key(uint64_t key, uint64_t salt) { return key == 0 ? 0 : mix(key ^ mix(salt)) | 1; }

// Dropout: whether element i survives. Two neighbours share 64 bits.
#if defined(__CUDACC__)
__host__ __device__
#endif
inline bool is_kept(uint64_t mixed_key, int64_t i, uint32_t dropped_below) {
  const uint64_t bits = mix(mixed_key ^ mix(static_cast<uint64_t>(i >> 1)));
  return static_cast<uint32_t>(i & 1 ? bits >> 32 : bits) >= dropped_below;
}
inline uint32_t dropout_limit(float rate) { return static_cast<uint32_t>(static_cast<double>(rate) * 4294967296.0); }

}  // namespace plumbline
