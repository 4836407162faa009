# The ONNX Runtime operator library. It declares the part of the C ABI that it needs itself: no
# ONNX Runtime is needed to build it, and it links to none.
add_library(fixclf_onnxruntime MODULE
  csrc/bindings/onnxruntime/head.cc
  csrc/bindings/onnxruntime/library.cc
  csrc/bindings/onnxruntime/transform.cc)
set(exports ${PROJECT_SOURCE_DIR}/cmake/onnxruntime.map)
target_link_libraries(fixclf_onnxruntime PRIVATE fixclf_kernels -Wl,--version-script,${exports})
set_target_properties(fixclf_onnxruntime PROPERTIES LINK_DEPENDS ${exports})
install(TARGETS fixclf_onnxruntime LIBRARY DESTINATION .)
