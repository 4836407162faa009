// Every epilogue; core/epilogue.def gives each its number, cuda/logits.cuh says what one is.
#pragma once

#include "cuda/epilogues/argmax.cuh"
#include "cuda/epilogues/log_softmax.cuh"
#include "cuda/epilogues/logits.cuh"
#include "cuda/epilogues/log_prob.cuh"
#include "cuda/epilogues/nll.cuh"
#include "cuda/epilogues/sample.cuh"
#include "cuda/epilogues/sigmoid.cuh"
#include "cuda/epilogues/softmax.cuh"
#include "cuda/epilogues/topk.cuh"
