// Which engine the pipeline steps with: a swap between two bins, and the fail-over to a standby.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <limits>
#include <thread>
#include <utility>

#include "decode.hpp"
#include "health.hpp"
#include "history.hpp"

namespace neds {

// A model as the pipeline uses it. All are borrowed; `standby` is null where there is none, and its
// stepper takes the counts that it is given.
struct Model {
  Stepper* stepper = nullptr;
  DecodeEncoder* encoder = nullptr;
  std::int64_t window = 1;
  Follower* standby = nullptr;
  Health* health = nullptr;  // null where the bundle has no statistics
};

// A model on offer, with what keeps its engine at the present until it is taken.
struct Candidate {
  Candidate(Model offered, Follower& following) : model(offered), follower(following) {}

  Model model;
  Follower& follower;
  std::atomic<std::uint64_t> at{0};  // entries of the history that the engine has seen
};

// One thread steps. Another one may offer a candidate, whose engine and followers are then not
// touched until retract() has returned true.
class EngineSlot {
 public:
  explicit EngineSlot(Model model) : model_(model) {}

  // Before the first step: where bins are kept for other engines, and how slow this one may be.
  void keep(History& history) noexcept { history_ = &history; }
  void limit(std::int64_t budget_ns, std::int64_t overruns) noexcept {
    budget_ns_ = budget_ns;
    most_overruns_ = overruns;
  }

  DecodeEncoder& encoder() const noexcept { return *model_.encoder; }
  Health* health() const noexcept { return model_.health; }
  // What the engine shows of its state after the last step, or null.
  const float* state() const { return model_.stepper->state(); }
  std::int64_t window() const noexcept { return model_.window; }

  // --- The thread that steps ---

  // Takes the model on offer if it has seen every bin so far; true when it did.
  bool adopt() noexcept {
    Candidate* offer = offered_.load(std::memory_order_acquire);
    if (offer == nullptr || history_ == nullptr) return false;
    if (offer->at.load(std::memory_order_relaxed) != history_->end()) return false;
    if (!offered_.compare_exchange_strong(offer, nullptr)) return false;
    model_ = offer->model;
    overruns_ = 0;
    given_up_ = false;
    failure_ = nullptr;
    swaps_.fetch_add(1, std::memory_order_release);
    return true;
  }

  void reset() {
    if (history_ != nullptr) history_->reset();
    guarded([this] { model_.stepper->reset(); });
  }

  void skip(std::int64_t n_bins) {
    if (history_ != nullptr) history_->skip(n_bins);
    guarded([this, n_bins] { model_.stepper->skip(n_bins); });
  }

  const float* step(const std::uint16_t* counts, bool present) {
    if (history_ != nullptr) history_->add(present ? counts : nullptr);
    failed_over_ = false;
    const float* outputs = nullptr;
    if (!given_up_) {
      guarded([&] { outputs = model_.stepper->step(counts, present); });
    }
    return given_up_ ? fail_over() : outputs;
  }

  // Tells how long the last step took. The standby takes over with the bin after too many slow ones.
  void judge(std::int64_t step_ns) noexcept {
    overruns_ = step_ns > budget_ns_ ? overruns_ + 1 : 0;
    if (overruns_ >= most_overruns_) give_up();
  }

  // Has the standby take over with the next bin; false where there is none.
  bool give_up() noexcept {
    given_up_ = model_.standby != nullptr;
    return given_up_;
  }

  // Whether the last step was the first one of the standby.
  bool failed_over() const noexcept { return failed_over_; }
  // What the engine threw, once; null when it was only slow.
  std::exception_ptr take_failure() noexcept { return std::exchange(failure_, nullptr); }

  // How many bins the standby has still to see, and letting it see one of them.
  std::uint64_t standby_behind() const noexcept {
    return model_.standby == nullptr ? 0 : model_.standby->behind();
  }
  void follow() {
    if (model_.standby != nullptr) model_.standby->follow(1);
  }

  // --- Other threads ---

  void offer(Candidate& candidate) noexcept {
    candidate.at.store(candidate.follower.at(), std::memory_order_relaxed);
    offered_.store(&candidate, std::memory_order_release);
  }
  // Takes the offer back; false when the candidate is serving already.
  bool retract(Candidate& candidate) noexcept {
    Candidate* expected = &candidate;
    return offered_.compare_exchange_strong(expected, nullptr);
  }
  std::int64_t swaps() const noexcept { return swaps_.load(std::memory_order_acquire); }
  std::int64_t failovers() const noexcept { return failovers_.load(std::memory_order_acquire); }

  // Since when the engine has been at work, 0 when it is not; ns of the monotonic clock.
  std::int64_t busy_since() const noexcept { return busy_since_.load(std::memory_order_acquire); }
  // Ends the stepping thread's part if it is still in that call: should the engine return after
  // all, the thread stays where it is. For a process that is about to end.
  bool cut_off(std::int64_t since) noexcept {
    return since > 0 && busy_since_.compare_exchange_strong(since, kCutOff);
  }

  // Waits until the engine has been at work for `limit_ns` and returns since when; 0 once
  // end_overdue() was called. Wakes once in `limit_ns`: what begins later is overdue later.
  std::int64_t overdue(std::int64_t limit_ns) const {
    while (!overdue_ended_.load(std::memory_order_relaxed)) {
      const std::int64_t now = monotonic_ns(), since = busy_since();
      if (since > 0 && now - since >= limit_ns) return since;
      const std::int64_t left = since > 0 ? since + limit_ns - now : limit_ns;
      std::this_thread::sleep_for(std::chrono::nanoseconds(std::min(left, kLongestSleepNs)));
    }
    return 0;
  }
  void end_overdue() noexcept { overdue_ended_.store(true, std::memory_order_relaxed); }
  // Lends what is the stepping thread's to the caller while it is still in that call: a call that
  // returns meanwhile waits for give_back(). False when it has returned.
  bool borrow(std::int64_t since) noexcept {
    return since > 0 && busy_since_.compare_exchange_strong(since, kBorrowed);
  }
  void give_back(std::int64_t since) noexcept {
    busy_since_.store(since, std::memory_order_release);
  }

  // Brackets whatever may hang, see busy_since().
  void enter() noexcept { busy_since_.store(monotonic_ns(), std::memory_order_release); }
  void leave() noexcept {
    std::int64_t since = busy_since_.load(std::memory_order_relaxed);
    while (since == kBorrowed || since == kCutOff ||
           !busy_since_.compare_exchange_strong(since, 0)) {
      if (since == kCutOff) std::this_thread::sleep_for(std::chrono::hours(1));
      std::this_thread::yield();
      since = busy_since_.load(std::memory_order_relaxed);
    }
  }

 private:
  static constexpr std::int64_t kCutOff = -1, kBorrowed = -2;
  static constexpr std::int64_t kLongestSleepNs = 50'000'000;  // so soon an end is seen

  template <class Call>
  void guarded(Call call) {
    if (given_up_) return;
    enter();
    try {
      call();
    } catch (...) {
      leave();
      if (!give_up()) throw;
      failure_ = std::current_exception();
      return;
    }
    leave();
  }

  // The standby goes through all that it has not seen, the present bin at last.
  const float* fail_over() {
    Follower& standby = *model_.standby;
    standby.follow(std::numeric_limits<std::size_t>::max());
    model_.stepper = &standby.stepper();
    model_.standby = nullptr;
    given_up_ = false;
    overruns_ = 0;
    failed_over_ = true;
    failovers_.fetch_add(1, std::memory_order_release);
    return standby.outputs();
  }

  Model model_;
  History* history_ = nullptr;
  std::int64_t budget_ns_ = std::numeric_limits<std::int64_t>::max();
  std::int64_t most_overruns_ = 1, overruns_ = 0;
  bool given_up_ = false, failed_over_ = false;
  std::exception_ptr failure_;
  std::atomic<Candidate*> offered_{nullptr};
  std::atomic<std::int64_t> swaps_{0}, failovers_{0}, busy_since_{0};
  std::atomic<bool> overdue_ended_{false};
};

}  // namespace neds
