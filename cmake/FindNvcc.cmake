# Sets Nvcc_EXECUTABLE and defines Nvcc::headers (cuda.h, cudaTypedefs.h: declarations, nothing to link).
#
# CMake's own CUDA support does not know the layout of the registry's packages, so the search is ours; the
# build backend asks the same program whether a download is needed. Nothing is cached: an isolated build's
# packages, and the compiler among them, are gone at the next build.

find_package(Python 3.10 COMPONENTS Interpreter REQUIRED)

execute_process(
  COMMAND "${Python_EXECUTABLE}" "${CMAKE_CURRENT_LIST_DIR}/find_nvcc.py"
  OUTPUT_VARIABLE _nvcc_lines
  ERROR_VARIABLE _nvcc_error
  RESULT_VARIABLE _nvcc_result
  OUTPUT_STRIP_TRAILING_WHITESPACE)
if(NOT _nvcc_result EQUAL 0)
  message(FATAL_ERROR "${_nvcc_error}")
endif()

string(REPLACE "\n" ";" _nvcc_lines "${_nvcc_lines}")
list(GET _nvcc_lines 0 Nvcc_EXECUTABLE)
list(GET _nvcc_lines 1 _nvcc_include_dir)
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(Nvcc REQUIRED_VARS Nvcc_EXECUTABLE)
message(STATUS "CUDA compiler: ${Nvcc_EXECUTABLE}, headers in ${_nvcc_include_dir}")

add_library(Nvcc::headers INTERFACE IMPORTED)
target_include_directories(Nvcc::headers SYSTEM INTERFACE "${_nvcc_include_dir}")
