# libl4kernels_emulated.so: the same kernels as PTX text, linked against the emulator in place of
# the CUDA runtime, and the same bindings under the namespace l4kernels_emulated on CPU tensors.
add_library(l4kernels_emulated SHARED ${L4K_KERNEL_SOURCES} ${L4K_BINDING_SOURCES})
l4k_torch_library(l4kernels_emulated 0x020b)  # 2.11: memory with a deleter
target_compile_definitions(l4kernels_emulated PRIVATE L4K_EMULATED)
target_include_directories(l4kernels_emulated PRIVATE ${PROJECT_SOURCE_DIR}/emulator/include)
target_compile_options(l4kernels_emulated PRIVATE
  $<$<COMPILE_LANGUAGE:CUDA>:-lineinfo --no-compress>)
set_target_properties(l4kernels_emulated PROPERTIES
  CUDA_ARCHITECTURES 90a-virtual CUDA_RUNTIME_LIBRARY None)
target_link_libraries(l4kernels_emulated PRIVATE l4k_emulator)
