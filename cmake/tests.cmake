# C++ tests of the framework-free library; no Python needed.
fixclf_add_isa(wide tests/wide.h)
add_executable(fixclf_tests csrc/tests/tests.cc $<TARGET_OBJECTS:fixclf_wide>)
target_link_libraries(fixclf_tests PRIVATE fixclf_kernels)
add_test(NAME fixclf_tests COMMAND fixclf_tests)
if(NOT CMAKE_CROSSCOMPILING)
  include(cmake/cuda_emulated.cmake)
endif()
