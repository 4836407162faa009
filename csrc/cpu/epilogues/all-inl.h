// Every epilogue; core/epilogue.def gives each its number. An epilogue is constructed for each row
// and sees the row's segments in class order, passes(resident) times.
#pragma once

#include "cpu/epilogues/log_softmax-inl.h"
#include "cpu/epilogues/logits-inl.h"
#include "cpu/epilogues/sigmoid-inl.h"
#include "cpu/epilogues/softmax-inl.h"
