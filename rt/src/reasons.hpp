// Why a decode is or is not valid: the one table of reasons, from which README.md's is tested.
#pragma once

#include <array>

namespace neds {

// The order is the code of a reason in a byte; new ones are added at the end.
enum Reason : int {
  kOk,
  kWarmingUp,
  kGap,
  kStale,
  kNotFinite,
  kEngineFailed,
  kStreamMissing,
  kUnitsSilent,
  kUnitsSaturated,
  kClockJump,
  kFailedOver,
  kDrift,
  kDeadlineMissed,
  kReasons
};

struct ReasonText {
  const char* name;
  const char* meaning;
};

inline constexpr std::array<ReasonText, kReasons> kReasonTable = {{
    {"ok", "the model saw a full window of whole bins, and nothing speaks against it"},
    {"warming up", "fewer bins than the model's window since the start or restart"},
    {"gap", "a bin that was lost, or closed without a stream, lies inside the window"},
    {"stale", "no bin closed for `--stale-after` seconds"},
    {"not finite", "a value is NaN or infinite"},
    {"engine failed", "the engine failed and nothing could take over; no decode follows"},
    {"stream missing", "the bin was closed without the streams in `missing`"},
    {"units silent", "more units than explained are silent for longer than in training"},
    {"units saturated", "more units than explained fire above their ceiling in training"},
    {"clock jump", "in the window a stream's clock left this machine's by `--clock-jump` seconds"},
    {"failed over", "the first bin that the standby engine decoded, see \"Fail-over\""},
    {"drift", "firing, or how well the model predicts it, is not what it was in training"},
    {"deadline missed",
     "written later than `--deadline-ms` after its frame came, or the frame came late itself; with "
     "`bin` -1: it is not there yet"},
}};

}  // namespace neds
