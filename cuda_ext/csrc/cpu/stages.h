// A profile of the CPU operators: processor time by stage, over all threads and calls, while it is asked for.
#pragma once

#include <memory>

#include "kernels.h"

namespace saltlm::cpu {

// One thread's laps; when it is done they are added to everybody's.
struct AddLaps {
  void operator()(Laps* laps) const;
};
using OwnedLaps = std::unique_ptr<Laps, AddLaps>;

// Null unless a profile is asked for.
OwnedLaps start_laps();

// The same of a product that torch makes with all its threads: processor time of the whole process while the object lives.
class ProcessLap {
 public:
  explicit ProcessLap(Stage stage);
  ~ProcessLap();
  ProcessLap(const ProcessLap&) = delete;

 private:
  Stage stage_;
  int64_t begin_;
};

}  // namespace saltlm::cpu
