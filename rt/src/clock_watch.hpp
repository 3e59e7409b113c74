// A stream's sample clock against the clock of this machine.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace neds {

// A frame can only be received after its last sample was taken, so the least delay of many frames
// says how the two clocks stand to each other. Once the least delays of two stretches of `kStretchS`
// agree, the stream is known to keep pace, and a frame that lies further from there than the bound
// shows that a clock has jumped or that frames were held back. A stream that was never seen to keep
// pace, such as a recording that is sent as fast as it goes, is not judged.
class ClockWatch {
 public:
  static constexpr double kStretchS = 2.0;   // of arrival
  static constexpr double kAgreeS = 0.05;    // between the least delays of two stretches
  static constexpr int kLeastFrames = 4;     // in a stretch

  void restart() noexcept { *this = ClockWatch(); }

  // Takes a frame up to `source_s` of the stream's clock, received at `now_s` of this machine's.
  void see(double source_s, double now_s) noexcept {
    delay_ = now_s - source_s;
    if (frames_ == 0) begin_s_ = now_s;
    least_ = frames_++ == 0 ? delay_ : std::min(least_, delay_);
    if (now_s - begin_s_ < kStretchS) return;
    if (frames_ >= kLeastFrames) {
      if (std::abs(least_ - last_least_) <= kAgreeS) reference_ = least_;
      last_least_ = least_;
    }
    frames_ = 0;
  }

  // How far the last frame lies from where it should, in seconds; 0 while that is not known.
  double off_s() const noexcept { return std::isfinite(reference_) ? delay_ - reference_ : 0.0; }

 private:
  static constexpr double kUnknown = std::numeric_limits<double>::infinity();

  double delay_ = 0, begin_s_ = 0, least_ = 0;
  double last_least_ = kUnknown, reference_ = kUnknown;
  int frames_ = 0;
};

}  // namespace neds
