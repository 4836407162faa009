# The CUDA kernels compiled by the host compiler against the emulation in csrc/tests/cuda/include;
# neither nvcc nor a device takes part.
set(cuda_sources csrc/cuda/adjoint.cu csrc/cuda/head_double.cu csrc/cuda/head_single.cu
  csrc/cuda/transform.cu)
set_source_files_properties(${cuda_sources} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-xc++")
add_library(fixclf_cuda_emulated STATIC ${cuda_sources})
target_include_directories(fixclf_cuda_emulated PUBLIC csrc/tests/cuda/include
  PRIVATE ${fixclf_generated})
target_link_libraries(fixclf_cuda_emulated PUBLIC fixclf_kernels)
target_compile_options(fixclf_cuda_emulated PRIVATE -ffp-contract=off -Wno-unknown-pragmas)

add_executable(fixclf_cuda_tests csrc/tests/cuda/tests.cc)
target_link_libraries(fixclf_cuda_tests PRIVATE fixclf_cuda_emulated)
add_test(NAME fixclf_cuda_tests COMMAND fixclf_cuda_tests)
