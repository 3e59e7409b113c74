// Many streams of late, early, repeated and lost frames -> closed bins, in order, by watermark.
// README.md of this package states the rules; this file is their only implementation.
#pragma once

#include <array>
#include <cmath>
#include <span>
#include <string_view>

#include "stream.hpp"

namespace neds {

enum Counter : int {
  kFrames,         // frames accepted
  kSpikes,         // spikes counted into open bins
  kBins,           // whole bins handed out
  kLostBins,       // bins handed out as lost
  kGaps,           // times that a stretch of a stream was missing
  kLostFrames,     // frames missing by sequence number
  kRestarts,       // new sessions after the first
  kSaturated,      // spikes beyond 65535 of one unit in one bin
  kLateSpikes,     // spikes below the watermark their stream had announced
  kPartialSpikes,  // spikes of bins that were lost or began before the stream did
  kAheadSpikes,    // spikes further past the watermark than is kept
  kUnitRange,      // spikes of a unit the stream does not have
  kPartialBins,    // bins handed out without a stream that was missing
  kMissing,        // times that a stream went missing
  kDuplicate,      // from here on: frames refused whole, by reason
  kEndedSession,
  kHeader,
  kVersion,
  kRange,
  kStream,
  kPayload,
  kRate,
  kBackwards,
  kOverrun,
  kParts,
  kOversize,
  kCounters
};

inline constexpr std::array<const char*, kCounters> kCounterNames = {
    "frames",        "spikes",        "bins",        "lost_bins",      "gaps",
    "lost_frames",   "restarts",      "saturated",   "late_spikes",    "partial_spikes",
    "ahead_spikes",  "unit_range",    "partial_bins", "missing",       "duplicate",
    "ended_session", "bad_header",    "bad_version", "bad_range",      "bad_stream",
    "bad_payload",   "bad_rate",      "bad_watermark", "overrun",      "bad_parts",
    "oversize"};

// How long the others wait for a stream, and how far its clock may leave this machine's.
struct Patience {
  std::int64_t close_after_ns = INT64_MAX;  // of silence, after which bins close without a stream
  double clock_jump_s = std::numeric_limits<double>::infinity();
};

class Assembler {
 public:
  // `streams`: name and model rows of each; rows of all streams together are 0..n_units-1 once each.
  Assembler(double bin_size_s, std::vector<std::pair<std::string, std::vector<std::int32_t>>> streams,
            std::size_t n_units, std::size_t open_bins, Patience patience = {})
      : bin_size_s_(bin_size_s), open_bins_(open_bins), patience_(patience), counts_(n_units) {
    if (streams.empty() || open_bins < 4 || !(bin_size_s > 0)) {
      throw std::invalid_argument("an assembler needs streams, a bin size and 4 open bins or more");
    }
    std::vector<bool> seen(n_units);
    for (auto& [name, rows] : streams) {
      for (const std::int32_t row : rows) {
        if (row < 0 || static_cast<std::size_t>(row) >= n_units || seen[row]) {
          throw std::invalid_argument("the rows of the streams must be 0..n_units-1, once each");
        }
        seen[row] = true;
      }
      streams_.emplace_back(std::move(name), std::move(rows), open_bins);
    }
    if (std::find(seen.begin(), seen.end(), false) != seen.end()) {
      throw std::invalid_argument("the rows of the streams must be 0..n_units-1, once each");
    }
    session_.reserve(streams_.size() * (kMaxNameBytes + 1));
    missing_.reserve(streams_.size());
  }

  // Takes one frame, received at `recv_ns`, and returns how many bins now wait to be popped, lost
  // ones included. Without a `Patience` the time plays no part.
  std::int64_t push(const std::uint8_t* header, std::size_t header_size, const std::uint8_t* payload,
                    std::size_t payload_size, std::int64_t recv_ns = 0) noexcept {
    now_ns_ = recv_ns;
    const Counter refused = take(header, header_size, payload, payload_size);
    ++counters_[refused];  // kFrames when it was accepted
    if (patience_.close_after_ns != INT64_MAX) look_for_missing();
    return available();
  }

  // Counts a frame that was refused before it could be handed over.
  void refuse(Counter kind) noexcept { ++counters_[kind]; }

  std::int64_t available() const noexcept {
    return aligned_ ? std::max<std::int64_t>(0, limit() - next_) : 0;
  }

  // 0: no bin is closed. 1: bin() is closed and counts() holds it. -n: the n bins from bin() on are
  // lost and counts() is zero.
  std::int64_t pop() noexcept {
    if (available() == 0) return 0;
    bin_ = next_;
    std::fill(counts_.begin(), counts_.end(), std::uint16_t{0});
    const std::int64_t end = lost_end();
    if (end > next_) {
      next_ = end;
      count(kLostBins, end - bin_);
      leave_missing();
      return bin_ - end;
    }
    for (Stream& s : streams_) {
      if (!s.missing) hand_out(s);
    }
    ++next_;
    leave_missing();
    ++counters_[missing_.empty() ? kBins : kPartialBins];
    return 1;
  }

  // Names of the streams that bins now close without.
  std::span<const std::string_view> missing() const noexcept { return missing_; }
  // Whether the clock of a stream that is there is off by more than it may.
  bool clock_jumped() const noexcept {
    return std::any_of(streams_.begin(), streams_.end(), [&](const Stream& s) {
      return !s.missing && std::abs(s.clock.off_s()) > patience_.clock_jump_s;
    });
  }

  // By how many seconds the last frames came later than their streams' frames do.
  double late_s() const noexcept {
    double late = 0;
    for (const Stream& s : streams_) {
      if (!s.missing) late = std::max(late, s.clock.off_s());
    }
    return late;
  }

  std::span<std::uint16_t> counts() noexcept { return counts_; }
  std::span<std::int64_t> counters() noexcept { return counters_; }
  std::int64_t bin() const noexcept { return bin_; }
  // Changes whenever the bins before the next one belong to another session.
  std::int64_t epoch() const noexcept { return epoch_; }
  // The streams' session names: one where all agree, else joined by "+" in stream order.
  std::string_view session() const noexcept { return session_; }
  // End of `bin` in seconds of the clock of the first stream that has started.
  double end_s(std::int64_t bin) const noexcept {
    const auto started = std::find_if(streams_.begin(), streams_.end(),
                                      [](const Stream& s) { return s.started; });
    const BinGrid& grid = (started == streams_.end() ? streams_.begin() : started)->grid;
    return static_cast<double>(grid.edge(bin + 1)) / grid.fs();
  }
  // Seconds from the newest spike handed out to the end of what its stream has delivered; -1: none.
  double spike_lag_s() const noexcept {
    double lag = -1;
    for (const Stream& s : streams_) {
      if (s.newest == BinQueue::kNoSpike || s.missing) continue;
      const double own = static_cast<double>(s.watermark - s.newest) / s.grid.fs();
      lag = lag < 0 ? own : std::min(lag, own);
    }
    return lag;
  }

 private:
  struct Plan {  // what a frame will change, worked out before anything is changed
    std::int64_t lost_end = INT64_MIN;  // the stream's open bins below this one are lost
    std::int64_t ahead_edge = 0;        // spikes from here on are too far ahead
    std::int64_t last_bin = 0;          // last bin that must be open
    std::int64_t reach = 0;             // how far its spikes come past its watermark, in samples
  };

  Counter take(const std::uint8_t* header, std::size_t header_size, const std::uint8_t* payload,
               std::size_t payload_size) noexcept {
    SpikeHeader h;
    switch (parse_header(header, header_size, h)) {
      case HeaderVerdict::ok: break;
      case HeaderVerdict::header: return kHeader;
      case HeaderVerdict::version: return kVersion;
      case HeaderVerdict::range: return kRange;
    }
    Stream* s = find(h.stream);
    if (s == nullptr) return kStream;
    if (payload_size != static_cast<std::size_t>(h.n_spikes) * kSpikeBytes) return kPayload;
    if (!BinGrid::valid(h.fs, bin_size_s_)) return kRate;
    if (s->has_session && h.session == s->session.view()) {
      if (h.seq <= s->seq) return kDuplicate;
      if (h.fs != s->grid.fs()) return kRate;
      if (h.watermark < s->watermark) return kBackwards;
      return s->started ? proceed(*s, h, payload) : begin(*s, h, payload);
    }
    if (s->has_ended_session && h.session == s->ended_session.view() && h.seq != 0) {
      // What was still under way from a source that has been replaced; a new start counts from 0.
      return kEndedSession;
    }
    return begin(*s, h, payload);
  }

  Stream* find(std::string_view name) noexcept {
    for (Stream& s : streams_) {
      if (s.name == name) return &s;
    }
    return nullptr;
  }

  // The first frame of a stream's session, or of a stream that another one's restart has reset.
  Counter begin(Stream& s, const SpikeHeader& h, const std::uint8_t* payload) noexcept {
    const BinGrid grid(h.fs, bin_size_s_);
    const std::int64_t first = grid.bin_of(h.t0_sample - 1) + 1;
    Plan plan = look_ahead(grid, h, payload);
    if (plan.last_bin - first + 1 > open_bins()) return kOverrun;
    if (s.has_session && h.session != s.session.view()) restart(s, h.session);
    s.started = s.has_session = true;
    s.session.set(h.session);
    s.grid = grid;
    s.first_bin = first;
    s.reach = 0;
    s.newest = BinQueue::kNoSpike;
    s.queue.start(first);
    s.clock.restart();
    apply(s, h, payload, h.t0_sample, plan);
    name_session();
    if (!aligned_) align();
    return kFrames;
  }

  // Another session of `s`: every stream starts anew but those that already carry that session,
  // whose bins are its first frames.
  void restart(Stream& s, std::string_view session) noexcept {
    s.ended_session = s.session;
    s.has_ended_session = true;
    for (Stream& other : streams_) {
      if (other.session.view() != session) other.started = false;
      other.missing = false;
    }
    list_missing();
    aligned_ = false;
    waiting_since_ns_ = now_ns_;
    ++epoch_;
    ++counters_[kRestarts];
  }

  void align() noexcept {
    next_ = INT64_MIN;
    for (const Stream& s : streams_) {
      if (s.missing) continue;
      if (!s.started) return;
      next_ = std::max(next_, s.first_bin);
    }
    aligned_ = true;
  }

  // Streams that went missing, and those that are back. A stream is missing when it holds up bins
  // that others have closed and has said nothing new for so long; a stream that comes late but comes
  // is waited for. It is back when it has caught up with the bins that were closed without it.
  void look_for_missing() noexcept {
    std::int64_t lead = INT64_MIN;
    for (const Stream& s : streams_) {
      if (s.started && !s.missing) lead = std::max(lead, aligned_ ? s.closed_end : INT64_MAX);
    }
    bool changed = false;
    for (Stream& s : streams_) {
      const bool behind = aligned_ ? s.closed_end <= next_ && lead > next_ : !s.started;
      const bool was = s.missing;
      if (was) {
        s.missing = !(s.started && s.closed_end >= next_);
      } else if (behind && lead != INT64_MIN &&
                 now_ns_ - std::max(s.heard_ns, waiting_since_ns_) > patience_.close_after_ns) {
        s.missing = true;
        ++counters_[kMissing];
      }
      changed = changed || s.missing != was;
    }
    if (!changed) return;
    list_missing();
    if (!aligned_) align();
  }

  void list_missing() noexcept {
    missing_.clear();
    for (const Stream& s : streams_) {
      if (s.missing) missing_.push_back(s.name);  // within the capacity reserved
    }
  }

  // What a missing stream has of the bins that were handed out without it is dropped, and so are
  // the bins that it has in part: were they kept, they would lack the spikes dropped with them.
  void leave_missing() noexcept {
    for (Stream& s : streams_) {
      if (!s.missing || !s.started || (s.queue.empty() && s.queue.run_begin() >= next_)) continue;
      s.queue.start(std::max(next_, s.queue.run_end()));
    }
  }

  // One name where all streams agree that were heard of, else all of theirs.
  void name_session() noexcept {
    session_.clear();  // stays within the capacity reserved: names are at most kMaxNameBytes long
    const Stream* first = nullptr;
    bool agree = true;
    for (const Stream& s : streams_) {
      if (!s.has_session) continue;
      if (first == nullptr) first = &s;
      agree = agree && s.session.view() == first->session.view();
    }
    for (const Stream& s : streams_) {
      if (!s.has_session || (agree && &s != first)) continue;
      if (!session_.empty()) session_.push_back('+');
      session_.append(s.session.view());
    }
  }

  // A further frame of a running session.
  Counter proceed(Stream& s, const SpikeHeader& h, const std::uint8_t* payload) noexcept {
    Plan plan = look_ahead(s.grid, h, payload);
    std::int64_t lost_until = h.t0_sample;
    if (h.seq != s.seq + 1 && s.reach > 0) {
      // A lost frame may have carried spikes past its watermark, as far as its session does, and
      // its watermark is unknown: where borders overlap it may lie as high as this frame's.
      lost_until = h.watermark + s.reach;
    }
    const bool gap = lost_until > s.watermark;
    if (gap) plan.lost_end = s.grid.bin_of(lost_until - 1) + 1;
    const bool new_run = gap && plan.lost_end > s.queue.run_end();
    if (!make_room(s, plan, new_run)) return kOverrun;

    count(kLostFrames, h.seq - s.seq - 1);
    if (gap) ++counters_[kGaps];
    if (new_run) {
      s.queue.truncate(s.closed_end);
      s.queue.start_run(plan.lost_end);
    } else if (gap) {
      s.queue.flag_lost(s.closed_end, plan.lost_end);
    }
    apply(s, h, payload, s.watermark, plan);
    return kFrames;
  }

  // True when the bins of the plan fit into the queue. While other streams have not started, the
  // oldest bins make room; later on nothing may be dropped, and the frame has to be refused: the
  // next one that fits then shows the gap.
  bool make_room(Stream& s, const Plan& plan, bool new_run) noexcept {
    BinQueue& queue = s.queue;
    const std::int64_t kept_from = new_run ? plan.lost_end : std::max(s.closed_end, queue.run_begin());
    if (plan.last_bin - kept_from + 1 > open_bins()) return false;
    const std::int64_t opened = plan.last_bin + 1 - (new_run ? plan.lost_end : queue.run_end());
    const std::int64_t cut = new_run ? s.closed_end : queue.run_end();
    while (opened > queue.room_from(cut)) {
      if (aligned_) return false;
      s.first_bin = std::max(s.first_bin, queue.front() + 1);
      queue.pop_front();
    }
    return true;
  }

  // Finds how far the spikes of a frame reach past its watermark.
  Plan look_ahead(const BinGrid& grid, const SpikeHeader& h,
                  const std::uint8_t* payload) const noexcept {
    Plan plan;
    plan.ahead_edge = grid.edge(grid.bin_of(h.watermark) + 1 + open_bins() / 4);
    std::int64_t newest = h.watermark - 1;
    for (std::int64_t i = 0; i < h.n_spikes; ++i) {
      std::int64_t sample = 0;
      std::uint32_t unit = 0;
      read_spike(payload, static_cast<std::size_t>(i), sample, unit);
      if (sample < plan.ahead_edge) newest = std::max(newest, sample);
    }
    plan.last_bin = grid.bin_of(newest);
    plan.reach = newest + 1 - h.watermark;
    return plan;
  }

  // Counts the spikes of a frame from sample `floor` on and moves the stream on. Never fails.
  void apply(Stream& s, const SpikeHeader& h, const std::uint8_t* payload, std::int64_t floor,
             const Plan& plan) noexcept {
    s.queue.open_through(plan.last_bin);
    const std::int64_t whole_from = std::max(s.queue.run_begin(), plan.lost_end);
    std::int64_t low = 1, high = 0, bin = 0;  // samples [low, high) belong to `bin`
    for (std::int64_t i = 0; i < h.n_spikes; ++i) {
      std::int64_t sample = 0;
      std::uint32_t unit = 0;
      read_spike(payload, static_cast<std::size_t>(i), sample, unit);
      if (const Counter odd = refuse_spike(s, sample, unit, floor, plan); odd != kSpikes) {
        ++counters_[odd];
        continue;
      }
      if (sample < low || sample >= high) {
        bin = s.grid.bin_of(sample);
        low = s.grid.edge(bin);
        high = s.grid.edge(bin + 1);
      }
      if (bin < whole_from) {
        ++counters_[kPartialSpikes];
        continue;
      }
      ++counters_[kSpikes];
      if (s.queue.add(bin, unit, sample)) ++counters_[kSaturated];
    }
    if (s.heard_ns == Stream::kNever || h.watermark > s.watermark) s.heard_ns = now_ns_;
    if (waiting_since_ns_ == Stream::kNever) waiting_since_ns_ = now_ns_;
    s.clock.see(static_cast<double>(h.watermark) / h.fs, static_cast<double>(now_ns_) * 1e-9);
    s.seq = h.seq;
    s.watermark = h.watermark;
    s.closed_end = s.grid.bin_of(h.watermark);
    s.reach = std::max(s.reach, plan.reach);
  }

  // Sticks at the largest value: these two grow by as much as a sender makes up.
  void count(Counter kind, std::int64_t n) noexcept {
    counters_[kind] += std::min(n, INT64_MAX - counters_[kind]);
  }

  static Counter refuse_spike(const Stream& s, std::int64_t sample, std::uint32_t unit,
                              std::int64_t floor, const Plan& plan) noexcept {
    if (unit >= s.rows.size()) return kUnitRange;
    if (sample < floor) return kLateSpikes;
    return sample < plan.ahead_edge ? kSpikes : kAheadSpikes;
  }

  std::int64_t open_bins() const noexcept { return static_cast<std::int64_t>(open_bins_); }

  // First bin that is not closed in every stream that is there.
  std::int64_t limit() const noexcept {
    std::int64_t end = INT64_MAX;
    for (const Stream& s : streams_) {
      if (!s.missing) end = std::min(end, s.closed_end);
    }
    return end;
  }

  // First closed bin from next_ on that no stream has lost, or the limit.
  std::int64_t lost_end() noexcept {
    const std::int64_t end = limit();
    std::int64_t bin = next_;
    while (bin < end) {
      std::int64_t resume = bin;
      for (Stream& s : streams_) {
        if (!s.missing) resume = std::max(resume, first_kept(s.queue, bin));
      }
      if (resume == bin) return bin;
      bin = std::min(resume, end);
    }
    return end;
  }

  // First bin from `bin` on that a stream may have whole; older bins are dropped.
  static std::int64_t first_kept(BinQueue& queue, std::int64_t bin) noexcept {
    while (!queue.empty() && queue.front() < bin) queue.pop_front();
    if (queue.empty()) return INT64_MAX;
    return queue.front() == bin && queue.front_lost() ? bin + 1 : queue.front();
  }

  void hand_out(Stream& s) noexcept {
    const std::uint16_t* own = s.queue.front_counts();
    for (std::size_t i = 0; i < s.rows.size(); ++i) counts_[s.rows[i]] = own[i];
    s.newest = std::max(s.newest, s.queue.front_newest());
    s.queue.pop_front();
  }

  double bin_size_s_;
  std::size_t open_bins_;
  Patience patience_;
  std::vector<Stream> streams_;
  std::vector<std::string_view> missing_;
  std::vector<std::uint16_t> counts_;
  std::array<std::int64_t, kCounters> counters_{};
  std::string session_;
  bool aligned_ = false;
  std::int64_t next_ = 0, bin_ = 0, epoch_ = 0;
  std::int64_t now_ns_ = 0;                         // when the frame at hand was received
  std::int64_t waiting_since_ns_ = Stream::kNever;  // when the first stream of this epoch started
};

}  // namespace neds
