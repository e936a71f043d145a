// out += the slices' partial sums, first slice first.
static void add_slices(const float* partial, int64_t slices, int64_t stride, float* out, int64_t C) {
  for (int64_t s = 0; s < slices; ++s, partial += stride) {
    int64_t i = 0;
    for (; i + kLanes <= C; i += kLanes) store(out + i, load(out + i) + load(partial + i));
    for (; i < C; ++i) out[i] += partial[i];
  }
}
