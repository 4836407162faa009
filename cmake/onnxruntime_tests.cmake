# The operator library in a C++ host of the ONNX Runtime that Python has; skipped without one.
find_package(Python 3.10 COMPONENTS Interpreter)
execute_process(
  COMMAND ${Python_EXECUTABLE} -c
    "import importlib.util as u; print(next(iter(u.find_spec('onnxruntime').submodule_search_locations)))"
  OUTPUT_VARIABLE onnxruntime_dir OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE failed ERROR_QUIET)
file(GLOB libonnxruntime ${onnxruntime_dir}/capi/libonnxruntime.so.*)
if(CMAKE_CROSSCOMPILING)
  message(STATUS "C++ tests with ONNX Runtime: skipped, this is a cross build")
elseif(failed OR NOT libonnxruntime)
  message(STATUS "C++ tests with ONNX Runtime: skipped, ${Python_EXECUTABLE} has no onnxruntime")
else()
  add_executable(fixclf_onnxruntime_tests csrc/tests/onnxruntime/tests.cc)
  target_include_directories(fixclf_onnxruntime_tests PRIVATE csrc)
  target_link_libraries(fixclf_onnxruntime_tests PRIVATE Threads::Threads ${CMAKE_DL_LIBS})
  add_test(NAME fixclf_onnxruntime_tests
    COMMAND fixclf_onnxruntime_tests ${libonnxruntime} $<TARGET_FILE:fixclf_onnxruntime>)
endif()
