// x . y over four vectors of lanes, added in a fixed order.
static float dot_row(const float* x, const float* y, int64_t size) {
  vec a = {}, b = {}, c = {}, d = {};
  int64_t i = 0;
  for (; i + 4 * kLanes <= size; i += 4 * kLanes) {
    a = fma(load(x + i), load(y + i), a);
    b = fma(load(x + i + kLanes), load(y + i + kLanes), b);
    c = fma(load(x + i + 2 * kLanes), load(y + i + 2 * kLanes), c);
    d = fma(load(x + i + 3 * kLanes), load(y + i + 3 * kLanes), d);
  }
  for (; i + kLanes <= size; i += kLanes) a = fma(load(x + i), load(y + i), a);
  if (i < size) b = fma(load_partial(x + i, size - i, 0.0f), load_partial(y + i, size - i, 0.0f), b);
  return sum_lanes((a + b) + (c + d));
}
