# onewave_add_calibrations(<variable>): the files of cpp/calibrations, which `python -m onewave calibrate` writes, as
# one C++ source; its path is put into <variable>.

function(onewave_add_calibrations sources)
  file(GLOB files CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/cpp/calibrations/*.json")
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${files})
  set(calibrations "")
  foreach(file IN LISTS files)
    file(READ "${file}" json)
    foreach(key gpu launch_us split_us partial_gb_per_s)
      string(JSON ${key} GET "${json}" ${key})
    endforeach()
    onewave_json_rows("${json}" memory memory num_ctas gb_per_s)
    onewave_json_rows(
      "${json}" kernels kernels head_dim loader q_bytes kv_bytes wide_step_us wide_unit_us wide_slowdown wide_unit_slowdown
      narrow_unit_us narrow_gb_per_s)
    string(
      APPEND
      calibrations
      "      {.gpu = \"${gpu}\",\n"
      "       .launch_us = ${launch_us},\n"
      "       .split_us = ${split_us},\n"
      "       .partial_gb_per_s = ${partial_gb_per_s},\n"
      "       .memory = {${memory}},\n"
      "       .kernels = {${kernels}}},\n")
  endforeach()
  set(source "${PROJECT_BINARY_DIR}/calibrations.cpp")
  file(
    CONFIGURE
    OUTPUT "${source}"
    CONTENT
      "// Written by cmake/Calibrations.cmake from cpp/calibrations.\n#include <onewave/cost_model.h>\n
namespace onewave {

const std::vector<Calibration>& calibrations() {
  static const std::vector<Calibration> all = {
${calibrations}  };
  return all;
}

}  // namespace onewave
"
    @ONLY)
  set(${sources} "${source}" PARENT_SCOPE)
endfunction()

# The objects of an array as designated initialisers.
function(onewave_json_rows json array rows)
  string(JSON count LENGTH "${json}" ${array})
  set(text "")
  math(EXPR last "${count} - 1")
  foreach(i RANGE ${last})
    set(fields "")
    foreach(key IN LISTS ARGN)
      string(JSON value GET "${json}" ${array} ${i} ${key})
      string(REPLACE "[" "{{" value "${value}")
      string(REPLACE "]" "}}" value "${value}")
      if(key STREQUAL loader)
        string(SUBSTRING "${value}" 0 1 first)
        string(SUBSTRING "${value}" 1 -1 rest)
        string(TOUPPER "${first}" first)
        set(value "Loader::k${first}${rest}")
      endif()
      string(APPEND fields ".${key} = ${value}, ")
    endforeach()
    string(APPEND text "\n            {${fields}},")
  endforeach()
  set(${rows} "${text}" PARENT_SCOPE)
endfunction()
