// A profile of the CPU operators: processor time by stage, summed over all threads and calls while it is enabled.
#pragma once

#include <memory>

#include "kernels.h"

namespace saltlm::cpu {

// Adds one thread's times to the totals when the thread is done with a call.
struct AddToTotals {
  void operator()(StageTimes* times) const;
};
using StageTimesPtr = std::unique_ptr<StageTimes, AddToTotals>;

// Null unless the profile is enabled.
StageTimesPtr start_stage_times();

// For a product that torch computes with all its threads: processor time of the whole process during the object's life.
class ProcessStageTimer {
 public:
  explicit ProcessStageTimer(Stage stage);
  ~ProcessStageTimer();
  ProcessStageTimer(const ProcessStageTimer&) = delete;

 private:
  Stage stage_;
  int64_t begin_;
};

}  // namespace saltlm::cpu
