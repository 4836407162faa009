// The CPU backend: validates, picks the instruction set, shares the rows among the host's threads.
#pragma once

#include <string>
#include <vector>

#include "core/parallel.h"
#include "core/problem.h"

namespace fixclf::cpu {

// The caller has checked that base and signs hold as many bytes as codebook.h says.
Status transform(const TransformProblem& problem, const Parallel& parallel);
Status head(const HeadProblem& problem, const Parallel& parallel);
Status adjoint(const AdjointProblem& problem, const Parallel& parallel);
Status reduction_backward(const ReductionBackwardProblem& problem, const Parallel& parallel);

// Instruction sets in this binary, slowest first; those of them that this machine can run.
std::vector<std::string> compiled_isas();
std::vector<std::string> supported_isas();

// The fastest supported one, or the one that the environment variable FIXCLF_ISA names. An error
// when that one is not compiled or not supported. Decided at the first call.
Status active_isa(std::string* name);

// For tests and benchmarks: runs `name` from now on. Not to be called while a kernel runs.
Status set_isa(const std::string& name);

}  // namespace fixclf::cpu
