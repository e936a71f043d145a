// sigmoid(x) and 1 - sigmoid(x), both to full relative accuracy: e = exp(-|x|) never overflows.
struct Sigmoid {
  vec yes, no;
};
PLUMBLINE_INLINE Sigmoid sigmoid(vec x) {
  const vec e = exp_nonpositive((vec)((ivec)x | splat_int(INT32_MIN)));
  const vec large = 1.0f / (1.0f + e), small = e * large;
  const ivec negative = (ivec)x < 0;  // the sign bit, which a blend takes as it is
  return {negative ? small : large, negative ? large : small};
}
