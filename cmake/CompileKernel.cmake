# Compiles one kernel to a cubin, and refuses what ptxas lets pass: spilled registers and serialised wgmma.
#
#   cmake -DNVCC= -DNAME= -DSOURCE= -DCUBIN= [-DINCLUDES=dir;dir] [-DDEFINES=A=1;B=2] [-DFLAGS=] -P CompileKernel.cmake
#
# Beside the cubin it leaves CUBIN.txt (all that nvcc said) and CUBIN.csv (one row of kernel_resources.csv;
# the columns are in Kernels.cmake).

cmake_minimum_required(VERSION 3.25)

# ptxas tells these as "info", which -Werror lets pass: a wgmma after which the compiler put a wait of its
# own. The text is matched too, for a code that a later release may add.
set(serialisation "\\(C(7504|7508|7509|7510|7511|7512|7514|7515|7517)\\)|wgmma[^\n]* serialized")

list(TRANSFORM INCLUDES PREPEND -I)
list(TRANSFORM DEFINES PREPEND -D)
execute_process(
  COMMAND
    "${NVCC}" -cubin -gencode=arch=compute_90a,code=sm_90a -std=c++20 -O3 -Xptxas -v ${FLAGS} ${INCLUDES} ${DEFINES}
    -o "${CUBIN}" "${SOURCE}"
  OUTPUT_VARIABLE output
  ERROR_VARIABLE output
  RESULT_VARIABLE result)
file(WRITE "${CUBIN}.txt" "${output}")

# A cubin that stays behind would look finished to the next build. CMake leaves indented lines as they are.
function(refuse reason quote)
  file(REMOVE "${CUBIN}")
  string(REPLACE "\n" "\n  " quote "  ${quote}")
  message(FATAL_ERROR "kernel ${NAME} ${reason}:\n${quote}")
endfunction()

function(lines_matching pattern out)
  string(REPLACE ";" "," lines "${output}")
  string(REPLACE "\n" ";" lines "${lines}")
  list(FILTER lines INCLUDE REGEX "${pattern}")
  list(JOIN lines "\n" lines)
  set(${out} "${lines}" PARENT_SCOPE)
endfunction()

if(NOT result EQUAL 0)
  refuse("does not compile" "${output}")
endif()
lines_matching("(^|[^0-9])[1-9][0-9]* bytes spill" spills)
# Those for compute-sanitizer may, and those with the profiler: what they have besides takes registers, and nobody
# compares their times.
if(spills AND NOT DEFINES MATCHES "ONEWAVE_SANITIZER|ONEWAVE_PROFILED=1")
  refuse("spills registers" "${spills}")
endif()
lines_matching("${serialisation}" serialised)
if(serialised)
  refuse("has its wgmma serialised" "${serialised}")
endif()
lines_matching("[Ww]arning" warnings)
if(warnings)
  message(WARNING "kernel ${NAME}:\n${warnings}")
endif()

# From ptxas -v: the value that `pattern` captures, 0 where the line has none (as for shared memory).
function(resource pattern out)
  string(REGEX MATCH "${pattern}" _ "${output}")
  if("${CMAKE_MATCH_1}" STREQUAL "")
    set(CMAKE_MATCH_1 0)
  endif()
  set(${out} "${CMAKE_MATCH_1}" PARENT_SCOPE)
endfunction()

resource("Used ([0-9]+) registers" registers)
resource("([0-9]+) bytes stack frame" stack_bytes)
resource("([0-9]+) bytes smem" static_smem_bytes)
file(SIZE "${CUBIN}" cubin_bytes)
file(WRITE "${CUBIN}.csv" "${NAME},${registers},${stack_bytes},${static_smem_bytes},${cubin_bytes}\n")
