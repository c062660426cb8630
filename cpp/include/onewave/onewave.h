#pragma once

/// All of the C++ API. No header of it includes one of CUDA or Python; linking takes libonewave.so and
/// nothing else. tests/consumer is a program that uses it.
///
/// On a GPU: workspace_layout() says how much device memory a DeviceAttention needs; it plans once a step and
/// runs once a layer; append_paged_kv_cache() and merge_states() need no plan. On the CPU: plan_batch()
/// writes the same plan to a buffer, execute_plan() runs it.
///
/// Threads. Functions may be called from any thread, several at a time, also with the same arguments, as long
/// as no two calls write to the same memory: plan_batch() to its buffer, update_kv_lens() to its
/// plan, predict_items() to `us`, execute_plan() to out and lse. What they read may be shared: batches, a
/// plan, a CostModel, a Calibration. plan_batch() keeps scratch memory in each thread that calls it, until
/// that thread ends; execute_plan() joins the threads that it starts before it returns. An object of type
/// DeviceAttention serves one thread at a time, any thread, and its workspace one stream at a time; two
/// objects know nothing of each other, on one device too.
///
/// Errors are the exceptions of error.h, and what the standard library throws where there is no memory or no
/// thread left. Versions that do not fit are found by the loader: version.h.

#include <onewave/cost_model.h>
#include <onewave/device.h>
#include <onewave/error.h>
#include <onewave/executor.h>
#include <onewave/plan_format.h>
#include <onewave/planner.h>
#include <onewave/profile.h>
#include <onewave/row_kernels.h>
#include <onewave/types.h>
#include <onewave/version.h>
