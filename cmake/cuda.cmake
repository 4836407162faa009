# The CUDA kernels, compiled by nvcc, and their torch library. FIXCLF_CUDA: AUTO builds what this
# machine can and warns of what it leaves out; ON requires all of it.
function(fixclf_cuda_missing what)
  if(FIXCLF_CUDA STREQUAL "ON")
    message(FATAL_ERROR "FIXCLF_CUDA is ON, but ${what}; build without with -DFIXCLF_CUDA=OFF")
  endif()
  message(WARNING "The CUDA library is left out: ${what}. The CPU build goes on; "
    "-DFIXCLF_CUDA=OFF silences this, -DFIXCLF_CUDA=ON makes it an error.")
endfunction()

find_program(FIXCLF_NVCC nvcc HINTS ENV CUDACXX PATHS /usr/local/cuda/bin)
if(NOT FIXCLF_NVCC)
  if(FIXCLF_CUDA STREQUAL "ON")
    fixclf_cuda_missing("there is no nvcc (CUDACXX names one)")
  endif()
  message(STATUS "CUDA: skipped, no nvcc found")
  return()
endif()
# Machine code for A100, H100/H200 and B200; PTX of the last for what comes after.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real 100)
endif()

# CMake's own checks end the whole configuration, so these come before them. One empty kernel for
# each architecture: an nvcc may not know it, or may refuse the host compiler.
set(check ${CMAKE_CURRENT_BINARY_DIR}/CMakeFiles/fixclf_cuda_check)
file(WRITE ${check}.cu "__global__ void kernel() {}\n")
set(host_compiler $ENV{CUDAHOSTCXX})
if(CMAKE_CUDA_HOST_COMPILER)
  set(host_compiler ${CMAKE_CUDA_HOST_COMPILER})
endif()
if(host_compiler)
  set(host_compiler -ccbin ${host_compiler})
endif()
set(able)
foreach(architecture IN LISTS CMAKE_CUDA_ARCHITECTURES)
  if(NOT architecture MATCHES "^([0-9]+[af]?)(-real|-virtual)?$")
    list(APPEND able ${architecture})  # native, all, all-major: nvcc's own choice
    continue()
  endif()
  set(number ${CMAKE_MATCH_1})
  set(code sm_${number})
  if(CMAKE_MATCH_2 STREQUAL "-virtual")
    set(code compute_${number})
  endif()
  execute_process(
    COMMAND ${FIXCLF_NVCC} ${host_compiler} -gencode=arch=compute_${number},code=${code} -std=c++17
      -c ${check}.cu -o ${check}.o
    OUTPUT_VARIABLE output ERROR_VARIABLE output RESULT_VARIABLE failed)
  if(NOT failed)
    list(APPEND able ${architecture})
    continue()
  endif()
  string(STRIP "${output}" output)
  set(reason "${FIXCLF_NVCC} can't compile for architecture ${architecture}: ${output}")
  if(FIXCLF_CUDA STREQUAL "ON")
    fixclf_cuda_missing("${reason}")
  endif()
  message(WARNING "The CUDA architecture ${architecture} is left out: ${reason}")
endforeach()
if(NOT able)
  fixclf_cuda_missing("${FIXCLF_NVCC} compiles for none of ${CMAKE_CUDA_ARCHITECTURES}")
  return()
endif()
set(CMAKE_CUDA_ARCHITECTURES ${able})

if(FIXCLF_CUDA STREQUAL "AUTO" AND NOT CMAKE_CUDA_COMPILER)
  include(CheckLanguage)
  set(ENV{CUDACXX} ${FIXCLF_NVCC})
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    fixclf_cuda_missing("CMake's check of ${FIXCLF_NVCC} failed")
    return()
  endif()
endif()
set(CMAKE_CUDA_COMPILER ${FIXCLF_NVCC})
enable_language(CUDA)
find_package(CUDAToolkit QUIET)
if(NOT TARGET CUDA::cudart_static)
  fixclf_cuda_missing("${FIXCLF_NVCC} has no static CUDA runtime beside it")
  return()
endif()
message(STATUS "CUDA: ${CMAKE_CUDA_COMPILER_VERSION}, architectures ${CMAKE_CUDA_ARCHITECTURES}")

add_library(fixclf_cuda STATIC
  csrc/cuda/adjoint.cu
  csrc/cuda/head_double.cu
  csrc/cuda/head_single.cu
  csrc/cuda/transform.cu)
target_link_libraries(fixclf_cuda PUBLIC fixclf_kernels CUDA::cudart_static)
target_include_directories(fixclf_cuda PRIVATE ${fixclf_generated})
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
