# The framework-free library: core and cpu. Its only include directory is csrc, so that no header of
# torch, ONNX Runtime, pybind11 or Python can be found from within it.
find_package(Threads REQUIRED)

add_library(fixclf_kernels STATIC
  csrc/core/validate.cc
  csrc/cpu/dispatch.cc
  csrc/cpu/thread_pool.cc)
target_include_directories(fixclf_kernels PUBLIC ${PROJECT_SOURCE_DIR}/csrc)
target_link_libraries(fixclf_kernels PUBLIC Threads::Threads)

# Every epilogue of core/epilogue.def has a file of its name on each backend; these include them all.
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS csrc/core/epilogue.def)
file(STRINGS csrc/core/epilogue.def rows REGEX "^FIXCLF_EPILOGUE")
set(fixclf_generated ${PROJECT_BINARY_DIR}/generated)
foreach(row IN LISTS rows)
  string(REGEX REPLACE "^[^\"]*\"([a-z_0-9]+)\".*$" "\\1" epilogue "${row}")
  string(APPEND epilogues_cpu "#include \"cpu/epilogues/${epilogue}-inl.h\"\n")
  string(APPEND epilogues_cuda "#include \"cuda/epilogues/${epilogue}.cuh\"\n")
endforeach()
file(CONFIGURE OUTPUT ${fixclf_generated}/epilogues_cpu.h CONTENT "${epilogues_cpu}" @ONLY)
file(CONFIGURE OUTPUT ${fixclf_generated}/epilogues_cuda.h CONTENT "${epilogues_cuda}" @ONLY)

# Kernels of one instruction set, as an object library.
function(fixclf_add_isa name header)
  add_library(fixclf_${name} OBJECT ${PROJECT_SOURCE_DIR}/csrc/cpu/kernels.cc)
  target_include_directories(fixclf_${name} PRIVATE
    ${PROJECT_SOURCE_DIR}/csrc ${fixclf_generated})
  target_compile_definitions(fixclf_${name} PRIVATE
    FIXCLF_ISA_NAME=${name} FIXCLF_ISA_HEADER="${header}")
  # Contraction is off: every fused multiply-add is one that the source asks for.
  # GCC 12 warns about its own AVX-512 intrinsics (-Wmaybe-uninitialized).
  target_compile_options(fixclf_${name} PRIVATE ${ARGN}
    -ffp-contract=off -fno-math-errno -fno-trapping-math -fno-exceptions -fno-rtti
    $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized -Wno-psabi>)
endfunction()

# One for each row of isa.def that is of this architecture and that FIXCLF_ISAS wants. dispatch.cc
# includes these rows as isas.def.
string(TOLOWER "${CMAKE_SYSTEM_PROCESSOR}" architecture)
string(REPLACE amd64 x86_64 architecture "${architecture}")
string(REPLACE arm64 aarch64 architecture "${architecture}")
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS csrc/cpu/isa.def)
file(STRINGS csrc/cpu/isa.def rows REGEX "^FIXCLF_ISA")
set(isas "")
foreach(row IN LISTS rows)
  string(REGEX MATCH "^FIXCLF_ISA\\(([a-z0-9]+), ([a-z0-9_]+), (.*), \"([^\"]*)\"\\)$" _ "${row}")
  set(isa ${CMAKE_MATCH_1})
  set(isa_architecture ${CMAKE_MATCH_2})
  if(NOT isa)
    message(FATAL_ERROR "csrc/cpu/isa.def: can't read the row ${row}")
  endif()
  set(row_${isa} "${row}")
  set(supported_${isa} "${CMAKE_MATCH_3}")
  separate_arguments(flags_${isa} UNIX_COMMAND "${CMAKE_MATCH_4}")
  if(isa_architecture MATCHES "^(any|${architecture})$")
    list(APPEND isas ${isa})
  endif()
endforeach()
# scalar is the first, and has float64.
if(FIXCLF_ISAS STREQUAL "native")
  include(CheckCXXSourceRuns)
  list(SUBLIST isas 1 -1 others)
  set(isas scalar)
  foreach(isa IN LISTS others)
    check_cxx_source_runs("int main() { return !(${supported_${isa}}); }" FIXCLF_RUNS_${isa})
    if(FIXCLF_RUNS_${isa})
      set(isas scalar ${isa})
    endif()
  endforeach()
elseif(NOT FIXCLF_ISAS STREQUAL "all")
  foreach(isa IN LISTS FIXCLF_ISAS)
    if(NOT isa IN_LIST isas)
      message(FATAL_ERROR "FIXCLF_ISAS names ${isa}, expected all, native or a list of ${isas}")
    endif()
  endforeach()
  set(isas scalar ${FIXCLF_ISAS})
  list(REMOVE_DUPLICATES isas)
endif()
set(chosen "")
foreach(isa IN LISTS isas)
  message(STATUS "Instruction set: ${isa}")
  string(APPEND chosen "${row_${isa}}\n")
  fixclf_add_isa(${isa} cpu/vec/${isa}.h ${flags_${isa}})
  target_sources(fixclf_kernels PRIVATE $<TARGET_OBJECTS:fixclf_${isa}>)

  # A weak symbol in such a unit could replace another unit's copy with instructions that the
  # machine lacks. The sanitizers add some of their own.
  if(NOT FIXCLF_SANITIZE)
    add_custom_command(TARGET fixclf_kernels PRE_LINK
      COMMAND ${CMAKE_COMMAND} -DNM=${CMAKE_NM} -DOBJECTS=$<TARGET_OBJECTS:fixclf_${isa}>
        -P ${PROJECT_SOURCE_DIR}/cmake/no_weak_symbols.cmake VERBATIM)
  endif()
endforeach()
file(CONFIGURE OUTPUT ${fixclf_generated}/isas.def CONTENT "${chosen}" @ONLY)
target_include_directories(fixclf_kernels PRIVATE ${fixclf_generated})
