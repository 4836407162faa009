# The CUDA kernels, compiled by nvcc, and their torch library. FIXCLF_CUDA: AUTO builds it where nvcc
# is found, ON requires it.
find_program(FIXCLF_NVCC nvcc HINTS ENV CUDACXX PATHS /usr/local/cuda/bin)
if(NOT FIXCLF_NVCC)
  if(FIXCLF_CUDA STREQUAL "ON")
    message(FATAL_ERROR "FIXCLF_CUDA is ON, but there is no nvcc; set CUDACXX, "
      "or build without with -DFIXCLF_CUDA=OFF")
  endif()
  message(STATUS "CUDA: skipped, no nvcc found")
  return()
endif()
set(CMAKE_CUDA_COMPILER ${FIXCLF_NVCC})
# Machine code for A100, H100/H200 and B200; PTX of the last for what comes after.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real 100)
endif()
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)
message(STATUS "CUDA: ${CMAKE_CUDA_COMPILER_VERSION}, architectures ${CMAKE_CUDA_ARCHITECTURES}")

add_library(fixclf_cuda STATIC
  csrc/cuda/adjoint.cu
  csrc/cuda/head_double.cu
  csrc/cuda/head_float.cu
  csrc/cuda/transform.cu)
target_link_libraries(fixclf_cuda PUBLIC fixclf_kernels CUDA::cudart_static)
set_target_properties(fixclf_cuda PROPERTIES CUDA_STANDARD 17 CUDA_STANDARD_REQUIRED ON)
# Contraction is off, as on the CPU: every fused multiply-add is one that the source asks for.
target_compile_options(fixclf_cuda PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-fmad=false>)

if(FIXCLF_TORCH)
  add_library(fixclf_torch_cuda MODULE csrc/bindings/torch/ops_cuda.cc)
  target_include_directories(fixclf_torch_cuda SYSTEM PRIVATE ${torch_dir}/include)
  fixclf_hide_paths(fixclf_torch_cuda ${torch_dir}/include)
  target_compile_definitions(fixclf_torch_cuda PRIVATE TORCH_TARGET_VERSION=0x020a000000000000)
  # libtorch.so stands for torch's CUDA libraries, which a CPU build of torch lacks: the library can
  # be linked with one and loaded with the other.
  target_link_libraries(fixclf_torch_cuda PRIVATE fixclf_cuda
    -Wl,--no-as-needed ${torch_dir}/lib/libtorch.so
    -Wl,--as-needed ${torch_dir}/lib/libtorch_cpu.so)
  set_target_properties(fixclf_torch_cuda PROPERTIES SKIP_BUILD_RPATH ON)
  install(TARGETS fixclf_torch_cuda LIBRARY DESTINATION .)
endif()
