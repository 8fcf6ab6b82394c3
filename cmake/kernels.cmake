# libl4kernels.so: every csrc/{kernels,probes}/*/*.cu and csrc/{bindings,host}/*.cpp.
file(GLOB L4K_KERNEL_SOURCES CONFIGURE_DEPENDS
  ${PROJECT_SOURCE_DIR}/csrc/kernels/*/*.cu ${PROJECT_SOURCE_DIR}/csrc/probes/*/*.cu)
file(GLOB L4K_BINDING_SOURCES CONFIGURE_DEPENDS
  ${PROJECT_SOURCE_DIR}/csrc/bindings/*.cpp ${PROJECT_SOURCE_DIR}/csrc/host/*.cpp)

set(L4K_NVCC_FLAGS -lineinfo -Xptxas=-warn-spills,-warn-lmem-usage)
set(L4K_CUDA_INCLUDE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})

# The bindings compile against torch's stable headers only; TORCH_TARGET_VERSION (major and minor, a
# byte each) makes the use of anything newer an error.
function(l4k_torch_library target version)
  target_include_directories(${target} PRIVATE ${PROJECT_SOURCE_DIR}/csrc)
  target_include_directories(${target} SYSTEM PRIVATE ${L4K_TORCH_DIR}/include ${L4K_CUDA_INCLUDE})
  target_compile_definitions(${target} PRIVATE TORCH_TARGET_VERSION=${version}000000000000ULL)
  target_compile_options(${target} PRIVATE
    $<$<COMPILE_LANGUAGE:CXX>:-fvisibility=hidden -ffile-prefix-map=${PROJECT_SOURCE_DIR}/=>)
  target_link_directories(${target} PRIVATE ${L4K_TORCH_DIR}/lib)
  # --no-as-needed: with a CUDA torch, libtorch.so brings libtorch_cuda.so and with it the weak
  # stream symbol; as-needed linking would drop it.
  target_link_options(${target} PRIVATE -Wl,--no-as-needed -Wl,-z,defs -Wl,--exclude-libs,ALL)
  target_link_libraries(${target} PRIVATE torch torch_cpu c10)
endfunction()

if(L4K_TORCH_DIR)
  add_library(l4kernels SHARED ${L4K_KERNEL_SOURCES} ${L4K_BINDING_SOURCES})
  l4k_torch_library(l4kernels 0x020a)  # 2.10
  target_compile_options(l4kernels PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:${L4K_NVCC_FLAGS}>)
  target_compile_definitions(l4kernels PRIVATE USE_CUDA)
  # The library finds torch's by soname: torch has loaded them before. Hidden: static variables of
  # inline functions (the driver's entry point) would be shared with the emulated twin.
  set_target_properties(l4kernels PROPERTIES CUDA_RUNTIME_LIBRARY Static SKIP_BUILD_RPATH ON
    CUDA_VISIBILITY_PRESET hidden LIBRARY_OUTPUT_DIRECTORY ${L4K_OUTPUT_DIR})
endif()
