// Every epilogue; core/epilogue.def gives each its number, cpu/logits-inl.h says what one is.
#pragma once

#include "cpu/epilogues/argmax-inl.h"
#include "cpu/epilogues/log_softmax-inl.h"
#include "cpu/epilogues/logits-inl.h"
#include "cpu/epilogues/log_prob-inl.h"
#include "cpu/epilogues/nll-inl.h"
#include "cpu/epilogues/sample-inl.h"
#include "cpu/epilogues/sigmoid-inl.h"
#include "cpu/epilogues/softmax-inl.h"
#include "cpu/epilogues/topk-inl.h"
