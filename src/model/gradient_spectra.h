#pragma once
// Spectra of weight gradients (algorithms, section 7).
#include <string>
#include <vector>

#include "model.h"

namespace plumbline {

constexpr size_t kSpectrumFigures = 4;

// [n, 4] of the gradients as they stand: nuclear norm, spectral norm, effective rank (sum s)^2 / sum s^2, nuclear / spectral; s the singular
// values, as roots of the eigenvalues of the shorter side's Gram matrix in f64. Zeros of a zero matrix, NaN of one that is not finite.
std::vector<double> gradient_spectra(Model& model, const std::vector<std::string>& names);

}  // namespace plumbline
