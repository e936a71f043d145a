// One row of cross_entropy.cpp.
static constexpr int64_t kBlock = 2048;  // 8 KiB: the second look at a block finds it in the first cache

PLUMBLINE_INLINE float exp_scalar(float x) { return exp_nonpositive(splat(x))[0]; }

// Largest element, NaN left out; -inf when there is none.
PLUMBLINE_INLINE float max_of(const float* x, int64_t size) {
  const vec lowest = splat(-__builtin_inff());
  vec a = lowest, b = lowest, c = lowest, d = lowest;
  int64_t i = 0;
  for (; i + 4 * kLanes <= size; i += 4 * kLanes) {
    a = max(load(x + i), a);
    b = max(load(x + i + kLanes), b);
    c = max(load(x + i + 2 * kLanes), c);
    d = max(load(x + i + 3 * kLanes), d);
  }
  for (; i + kLanes <= size; i += kLanes) a = max(load(x + i), a);
  if (i < size) b = max(load_partial(x + i, size - i, -__builtin_inff()), b);
  return max_lanes(max(max(a, b), max(c, d)));
}

// Sum of exp(x - shift) in f32 lanes: a block is short enough.
PLUMBLINE_INLINE float sum_exp(const float* x, float shift, int64_t size) {
  const vec m = splat(shift);
  vec a = {}, b = {};
  int64_t i = 0;
  for (; i + 2 * kLanes <= size; i += 2 * kLanes) {
    a += exp_nonpositive(load(x + i) - m);
    b += exp_nonpositive(load(x + i + kLanes) - m);
  }
  for (; i < size; i += kLanes) a += exp_nonpositive(load_partial(x + i, size - i < kLanes ? size - i : kLanes, -__builtin_inff()) - m);
  return sum_lanes(a + b);
}

// Where `best`, the largest of the block that starts at `start`, first stands; 0 when the row holds no number.
PLUMBLINE_INLINE int32_t first_equal(const float* row, int64_t start, int64_t V, float best) {
  for (int64_t i = start; i < V; ++i)
    if (row[i] == best) return (int32_t)i;
  return 0;
}

static RowMax row_max(const float* row, int64_t V) {
  float best = -__builtin_inff();
  int64_t best_start = 0;
  for (int64_t start = 0; start < V; start += kBlock) {
    const float here = max_of(row + start, V - start < kBlock ? V - start : kBlock);
    if (here > best) best = here, best_start = start;
  }
  return {best, first_equal(row, best_start, V, best)};
}

// Maximum and sum of exponentials in one read of the row: the sum so far is rescaled when a block raises the maximum.
static RowSum row_sum(const float* row, int64_t V) {
  float best = -__builtin_inff(), shift = 0.0f;  // while all is -inf the shift stays 0: exp(-inf - 0) = 0, not NaN
  double sum = 0;
  int64_t best_start = 0;
  for (int64_t start = 0; start < V; start += kBlock) {
    const int64_t size = V - start < kBlock ? V - start : kBlock;
    const float here = max_of(row + start, size);
    if (here > best) {
      sum *= (double)exp_scalar(best - here);  // before the first number the sum is 0 or NaN and stays so
      best = shift = here;
      best_start = start;
    }
    sum += (double)sum_exp(row + start, shift, size);
  }
  return {{best, first_equal(row, best_start, V, best)}, sum, shift};
}

// out = exp(row - shift) * factor; out may be row.
static void row_softmax(const float* row, float shift, float factor, float* out, int64_t V) {
  const vec m = splat(shift), f = splat(factor);
  int64_t i = 0;
  for (; i + kLanes <= V; i += kLanes) store(out + i, exp_nonpositive(load(row + i) - m) * f);
  if (i < V) store_partial(out + i, exp_nonpositive(load_partial(row + i, V - i, -__builtin_inff()) - m) * f, V - i);
}

static float row_exp(float x, float shift) { return exp_scalar(x - shift); }
