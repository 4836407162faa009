# The torch op library on the stable ABI. Not find_package(Torch), which asks for a CUDA toolkit
# where the wheel was built with one.
set(torch_dir "${FIXCLF_TORCH_DIR}")
set(failed 0)
if(NOT torch_dir)
  execute_process(
    COMMAND ${Python_EXECUTABLE} -c
      "import importlib.util as u; print(next(iter(u.find_spec('torch').submodule_search_locations)))"
    OUTPUT_VARIABLE torch_dir OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE failed ERROR_QUIET)
endif()
if(failed)
  message(FATAL_ERROR "FIXCLF_TORCH is ON, but ${Python_EXECUTABLE} has no torch; "
    "install it, or build without with -DFIXCLF_TORCH=OFF")
endif()

add_library(fixclf_torch MODULE csrc/bindings/torch/ops.cc)
fixclf_hide_paths(fixclf_torch ${torch_dir}/include)
target_include_directories(fixclf_torch SYSTEM PRIVATE ${torch_dir}/include)
# One binary for torch 2.10 and everything after it.
target_compile_definitions(fixclf_torch PRIVATE TORCH_TARGET_VERSION=0x020a000000000000)
target_link_libraries(fixclf_torch PRIVATE fixclf_kernels ${torch_dir}/lib/libtorch_cpu.so)
# torch is loaded before this library: no path to it may stay in the binary.
set_target_properties(fixclf_torch PROPERTIES SKIP_BUILD_RPATH ON)
install(TARGETS fixclf_torch LIBRARY DESTINATION .)
