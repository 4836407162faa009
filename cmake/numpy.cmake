# The pybind11 module: the kernels on NumPy arrays.
execute_process(COMMAND ${Python_EXECUTABLE} -m pybind11 --cmakedir
  OUTPUT_VARIABLE pybind11_DIR OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
set(PYBIND11_FINDPYTHON ON)
find_package(pybind11 CONFIG REQUIRED)

pybind11_add_module(_native MODULE csrc/bindings/numpy/module.cc)
fixclf_hide_paths(_native ${Python_INCLUDE_DIRS} ${pybind11_INCLUDE_DIR})
target_link_libraries(_native PRIVATE fixclf_kernels)
install(TARGETS _native LIBRARY DESTINATION .)
