# The tables of kernels. The rows become cubins, the cubins an assembly file that embeds them, and the tables
# themselves the C++ constants of cpp/kernels.h.

# Each row is cuda/attention.cu compiled once more, for each of the dtypes, loaders and masks, and with the profiler
# for some.
set(ONEWAVE_HEAD_DIMS
    # head_dim_qk  head_dim_vo
    "64            64"
    "96            96"
    "128           128"
    "192           128"
    "192           192"
    "256           256"
    CACHE STRING "Pairs of head_dims to build kernels for: fewer are built sooner")
# Of Q, and of K and V. fp8 is e4m3; what is widened for wide items has no room where head_dim_qk and head_dim_vo
# differ.
set(ONEWAVE_DTYPES
    # q    kv
    "bf16  bf16"
    "bf16  fp8"
    "fp16  fp16"
    "fp16  fp8"
    "fp8   fp8")
set(ONEWAVE_LOADERS tma gather)
# Causal or not, or also windows, soft caps, sinks and custom masks, which cost the others nothing so.
set(ONEWAVE_MASKS plain masked)
# Rows, as patterns, that have a kernel with the profiler beside the one without: not all, for the build's time and the
# wheel's size (bench/results/build.txt). Those of fp16 take the time of those of bf16.
set(ONEWAVE_PROFILED "^bf16 +bf16 " "fp8 +(64 +64|128 +128) ")
set(ONEWAVE_KERNELS "")
foreach(_dtypes IN LISTS ONEWAVE_DTYPES)
  foreach(_head_dims IN LISTS ONEWAVE_HEAD_DIMS)
    if(_dtypes MATCHES "16 +fp8$" AND _head_dims MATCHES "^192 +128$")
      continue()
    endif()
    foreach(_mask IN LISTS ONEWAVE_MASKS)
      foreach(_loader IN LISTS ONEWAVE_LOADERS)
        list(APPEND ONEWAVE_KERNELS "${_dtypes} ${_head_dims} ${_loader} ${_mask} quiet")
      endforeach()
    endforeach()
  endforeach()
endforeach()
foreach(_row IN LISTS ONEWAVE_KERNELS)
  foreach(_pattern IN LISTS ONEWAVE_PROFILED)
    if(_row MATCHES "${_pattern}" AND NOT _row MATCHES "^fp16")
      string(REGEX REPLACE "quiet$" "profiled" _profiled_row "${_row}")
      list(APPEND ONEWAVE_KERNELS "${_profiled_row}")
    endif()
  endforeach()
endforeach()

# Each row is a source of its own in cuda/, and the C++ constant of its cubin.
set(ONEWAVE_OTHER_KERNELS
    # name           constant
    "append          kAppendCubin"
    "append_fp8      kAppendFp8Cubin"
    "merge_states    kMergeStatesCubin"
    "update_kv_lens  kUpdateKvLensCubin")

# What the words of the first table are in C++ (cpp/kernels.h) and in cuda/config.cuh.
set(_cpp_bf16 DType::kBFloat16)
set(_cpp_fp16 DType::kFloat16)
set(_cpp_fp8 DType::kFloat8E4M3)
set(_cpp_tma Loader::kTma)
set(_cpp_gather Loader::kGather)
set(_cuda_bf16 __nv_bfloat16)
set(_cuda_fp16 __half)
set(_cuda_fp8 ptx::E4M3)
set(_cuda_tma 0)
set(_cuda_gather 1)
set(_cpp_plain false)
set(_cpp_masked true)
set(_cuda_plain 0)
set(_cuda_masked 1)
set(_cpp_quiet false)
set(_cpp_profiled true)
set(_cuda_quiet 0)
set(_cuda_profiled 1)

# A cheaper one builds a library whose launcher can be tested, but not run.
set(ONEWAVE_KERNEL_SOURCE "${PROJECT_SOURCE_DIR}/cuda/attention.cu" CACHE FILEPATH "What each row of the first table compiles")

# All that a kernel can include of ours. A list and not a DEPFILE: CMake keeps those in CMakeFiles, which
# scikit-build-core clears in each new isolated environment, so that every `pip install` would compile all
# kernels anew.
file(
  GLOB_RECURSE _kernel_includes CONFIGURE_DEPENDS
  "${PROJECT_SOURCE_DIR}/cuda/*.h" "${PROJECT_SOURCE_DIR}/cuda/*.cuh" "${PROJECT_SOURCE_DIR}/cpp/include/*.h")

# One cubin; rebuilt when one of these files changes, and only then.
function(onewave_compile_kernel name cubin source defines)
  set(script "${PROJECT_SOURCE_DIR}/cmake/CompileKernel.cmake")
  set(includes "${PROJECT_SOURCE_DIR}/cpp/include;${PROJECT_SOURCE_DIR}/cuda")
  set(flags "")
  if(ONEWAVE_SANITIZER)
    list(APPEND defines ONEWAVE_SANITIZER)
    set(flags -lineinfo)
  endif()
  add_custom_command(
    OUTPUT "${cubin}"
    BYPRODUCTS "${cubin}.txt" "${cubin}.csv"
    COMMAND "${CMAKE_COMMAND}" "-DNVCC=${Nvcc_EXECUTABLE}" "-DNAME=${name}" "-DSOURCE=${source}"
            "-DCUBIN=${cubin}" "-DINCLUDES=${includes}" "-DDEFINES=${defines}" "-DFLAGS=${flags}" -P "${script}"
    DEPENDS "${source}" "${script}" "${Nvcc_EXECUTABLE}" ${_kernel_includes}
    COMMENT "Compiling kernel ${name}"
    VERBATIM)
endfunction()

# The assembly that embeds a cubin, and its declaration in C++, are appended to `asm` and `declarations`, its
# file to `cubins`, of the caller; `initialiser` becomes that of its struct Cubin.
macro(onewave_embed_kernel name cubin)
  set(_symbol "onewave_cubin_${name}")
  string(APPEND asm ".balign 64\n.hidden ${_symbol}, ${_symbol}_end\n.global ${_symbol}, ${_symbol}_end\n"
         "${_symbol}:\n.incbin \"${cubin}\"\n${_symbol}_end:\n")
  string(APPEND declarations "extern \"C\" const unsigned char ${_symbol}[], ${_symbol}_end[];\n")
  set(initialiser "{\"${name}\", ${_symbol}, ${_symbol}_end}")
  list(APPEND cubins "${cubin}")
endmacro()

# onewave_add_kernels(<out: sources>): the two generated sources. Defines the target onewave_kernels: the
# cubins and their table of resources, kernel_resources.csv in the build folder.
function(onewave_add_kernels out_sources)
  set(dir "${PROJECT_BINARY_DIR}/kernels")
  file(MAKE_DIRECTORY "${dir}")
  set(asm ".section .rodata, \"a\"\n")
  set(declarations "")
  set(rows "")
  set(constants "")
  set(cubins "")

  foreach(row IN LISTS ONEWAVE_KERNELS)
    separate_arguments(row UNIX_COMMAND "${row}")
    list(GET row 0 dtype)
    list(GET row 1 kv_dtype)
    list(GET row 2 head_dim_qk)
    list(GET row 3 head_dim_vo)
    list(GET row 4 loader)
    list(GET row 5 mask)
    list(GET row 6 profiler)
    set(name "${dtype}")
    if(NOT kv_dtype STREQUAL dtype)
      string(APPEND name "_${kv_dtype}")
    endif()
    string(APPEND name "_d${head_dim_qk}")
    if(NOT head_dim_vo EQUAL head_dim_qk)
      string(APPEND name "_${head_dim_vo}")
    endif()
    string(APPEND name "_${loader}")
    if(NOT mask STREQUAL "plain")
      string(APPEND name "_${mask}")
    endif()
    if(profiler STREQUAL "profiled")
      string(APPEND name "_profiled")
    endif()
    set(cubin "${dir}/${name}.cubin")
    onewave_compile_kernel(
      "${name}" "${cubin}" "${ONEWAVE_KERNEL_SOURCE}"
      "ONEWAVE_DTYPE=${_cuda_${dtype}};ONEWAVE_KV_DTYPE=${_cuda_${kv_dtype}};ONEWAVE_HEAD_DIM_QK=${head_dim_qk};ONEWAVE_HEAD_DIM_VO=${head_dim_vo};ONEWAVE_LOADER=${_cuda_${loader}};ONEWAVE_MASKED=${_cuda_${mask}};ONEWAVE_PROFILED=${_cuda_${profiler}}")
    onewave_embed_kernel("${name}" "${cubin}")
    string(APPEND rows "    {${_cpp_${dtype}}, ${_cpp_${kv_dtype}}, ${head_dim_qk}, ${head_dim_vo}, ${_cpp_${loader}}, ${_cpp_${mask}}, ${_cpp_${profiler}}, ${initialiser}},\n")
  endforeach()
  foreach(row IN LISTS ONEWAVE_OTHER_KERNELS)
    separate_arguments(row UNIX_COMMAND "${row}")
    list(GET row 0 name)
    list(GET row 1 constant)
    set(cubin "${dir}/${name}.cubin")
    onewave_compile_kernel("${name}" "${cubin}" "${PROJECT_SOURCE_DIR}/cuda/${name}.cu" "")
    onewave_embed_kernel("${name}" "${cubin}")
    string(APPEND constants "const Cubin ${constant} = ${initialiser};\n")
  endforeach()
  string(APPEND asm ".section .note.GNU-stack, \"\", @progbits\n")

  file(CONFIGURE OUTPUT "${dir}/cubins.S" CONTENT "${asm}" @ONLY)
  file(CONFIGURE OUTPUT "${dir}/embedded_kernels.cpp" CONTENT [[
#include "kernels.h"

@declarations@
namespace onewave {

const EmbeddedKernel kEmbeddedKernels[] = {
@rows@};
const size_t kNumEmbeddedKernels = sizeof(kEmbeddedKernels) / sizeof(kEmbeddedKernels[0]);
@constants@
}  // namespace onewave
]] @ONLY)
  # .incbin is invisible to the compiler's dependency scan.
  set_source_files_properties("${dir}/cubins.S" PROPERTIES OBJECT_DEPENDS "${cubins}")

  set(resources "${PROJECT_BINARY_DIR}/kernel_resources.csv")
  file(CONFIGURE OUTPUT "${dir}/header.csv"
       CONTENT "kernel,registers,stack_bytes,static_smem_bytes,cubin_bytes\n" @ONLY)
  list(TRANSFORM cubins APPEND .csv OUTPUT_VARIABLE cubin_rows)
  add_custom_command(
    OUTPUT "${resources}"
    COMMAND "${CMAKE_COMMAND}" -E cat "${dir}/header.csv" ${cubin_rows} > "${resources}"
    DEPENDS ${cubins} "${dir}/header.csv"
    VERBATIM)
  add_custom_target(onewave_kernels ALL DEPENDS ${cubins} "${resources}")

  set(${out_sources} "${dir}/cubins.S" "${dir}/embedded_kernels.cpp" PARENT_SCOPE)
endfunction()
