// The flight recorder's own thread: from the ring to a file of checksummed chunks.
#pragma once

#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <memory>
#include <mutex>
#include <thread>

#include <fcntl.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <unistd.h>

#include "decode.hpp"
#include "tape.hpp"

namespace neds {

// CRC-32 as zlib computes it; `crc` is that of what came before.
inline std::uint32_t crc32(ByteSpan bytes, std::uint32_t crc = 0) noexcept {
  static constexpr auto table = [] {
    std::array<std::uint32_t, 256> made{};
    for (std::uint32_t i = 0; i < 256; ++i) {
      std::uint32_t c = i;
      for (int bit = 0; bit < 8; ++bit) c = (c >> 1) ^ ((c & 1) != 0 ? 0xEDB88320u : 0u);
      made[i] = c;
    }
    return made;
  }();
  crc = ~crc;
  for (const std::uint8_t byte : bytes) crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8);
  return ~crc;
}

struct TapeChunk {
  std::array<char, 4> magic{'N', 'T', 'C', '1'};
  std::uint32_t header_crc = 0;  // of what follows in this struct
  std::uint64_t id = 0;          // of the recording: nothing that is recorded can look like a chunk
  std::uint64_t sequence = 0;
  std::uint32_t body_size = 0, body_crc = 0;
  std::uint32_t records = 0, inputs = 0;
};
static_assert(sizeof(TapeChunk) == 40);

struct TapePolicy {
  std::uint64_t id = 0;
  double drain_s = 0.05;  // from the ring to the system: what a killed process may lose
  double sync_s = 1.0;    // from the system to the disk, 0 for every chunk: what a power cut may
  std::uint64_t reserve = 0;  // bytes of the disk that are left free
};

// Writes what the ring holds to a file descriptor, which it closes. Its thread never has the GIL.
class TapeWriter {
 public:
  static constexpr int kNoReserve = -1;  // `error` when less than the reserve is free

  TapeWriter(int fd, ByteSpan start, TapePolicy policy, std::size_t capacity)
      : ring(capacity), fd_(fd), policy_(policy) {
    const TapeRecord record{static_cast<std::uint32_t>(start.size()), 0, TapeKind::start, 0,
                            monotonic_ns()};
    if (!write({bytes_of(record), start}, 1, 0)) return;
    sync();
    if (error == 0) ring.begin();
  }

  TapeRing ring;
  std::atomic<int> error{0};  // errno, or kNoReserve: recording has ended
  std::atomic<std::uint64_t> bytes{0}, chunks{0}, syncs{0};

  // What the thread does until `request_stop`, and then once more.
  void run() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, nullptr);  // signals are for the thread that serves
    bool last = false;
    while (error == 0 && !last) {
      last = wait();
      watch_space();
      while (error == 0 && drain()) {}
      if (last && error == 0) finish();
      if (error == 0 && seconds_since(synced_) >= policy_.sync_s) sync();
    }
    ::close(fd_);
    const std::lock_guard locked(mutex_);
    done_ = true;
    changed_.notify_all();
  }

  void request_stop() {
    const std::lock_guard locked(mutex_);
    stopping_ = true;
    changed_.notify_all();
  }
  // Waits for the thread to end, at most so long; false if it is still held up by the disk.
  bool ended(double seconds) {
    std::unique_lock locked(mutex_);
    return changed_.wait_for(locked, std::chrono::duration<double>(seconds), [&] { return done_; });
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr std::size_t kMaxChunk = 1 << 20;  // unless a record is larger
  static constexpr std::int64_t kAllocate = 8 << 20;

  static double seconds_since(Clock::time_point then) {
    return std::chrono::duration<double>(Clock::now() - then).count();
  }

  bool wait() {
    std::unique_lock locked(mutex_);
    changed_.wait_for(locked, std::chrono::duration<double>(policy_.drain_s),
                      [&] { return stopping_; });
    return stopping_;
  }

  // Writes one chunk; false when there was nothing to write.
  bool drain() {
    const std::uint64_t from = ring.drained(), written = ring.written();
    std::uint64_t until = from;
    std::uint32_t records = 0, inputs = 0;
    while (until < written) {
      const TapeRecord record = ring.record_at(until);
      const std::uint64_t next = until + sizeof record + record.body_size;
      if (records > 0 && next - from > kMaxChunk) break;
      until = next;
      ++records;
      inputs += record.kind != TapeKind::decode;
    }
    if (records == 0) return false;
    if (write(ring.parts(from, until), records, inputs)) ring.release(until);
    return true;
  }

  // Says what is missing at the very end, and that this is the end.
  void finish() {
    const TapeHole hole = ring.missing();
    const TapeRecord end{sizeof hole, 0, TapeKind::end, 0, monotonic_ns()};
    if (!write({bytes_of(end), bytes_of(hole)}, 1, 0)) return;
    sync();
    if (::ftruncate(fd_, size_) != 0) error = errno;  // gives back what was allocated past the end
  }

  bool write(std::array<ByteSpan, 2> body, std::uint32_t records, std::uint32_t inputs) {
    TapeChunk chunk;
    chunk.id = policy_.id;
    chunk.sequence = chunks;
    chunk.body_size = static_cast<std::uint32_t>(body[0].size() + body[1].size());
    chunk.body_crc = crc32(body[1], crc32(body[0]));
    chunk.records = records;
    chunk.inputs = inputs;
    chunk.header_crc = crc32(bytes_of(chunk).subspan(8));
    const std::int64_t size = size_ + static_cast<std::int64_t>(sizeof chunk + chunk.body_size);
    allocate(size);
    if (!put({bytes_of(chunk), body[0], body[1]})) {
      const int why = errno;
      // What was written of this chunk goes, as far as the disk lets it.
      if (::ftruncate(fd_, size_) != 0) errno = why;
      stop_recording(why);
      return false;
    }
    size_ = size;
    bytes = static_cast<std::uint64_t>(size);
    ++chunks;
    dirty_ = true;
    return true;
  }

  bool put(std::array<ByteSpan, 3> parts) {
    for (;;) {
      std::array<iovec, 3> left{};
      int n = 0;
      for (const ByteSpan& part : parts) {
        if (!part.empty()) {
          left[static_cast<std::size_t>(n++)] = {const_cast<std::uint8_t*>(part.data()),
                                                 part.size()};
        }
      }
      if (n == 0) return true;
      const ssize_t wrote = ::writev(fd_, left.data(), n);
      if (wrote < 0 && errno != EINTR) return false;
      auto rest = static_cast<std::size_t>(std::max<ssize_t>(wrote, 0));
      for (ByteSpan& part : parts) {
        const std::size_t taken = std::min(rest, part.size());
        part = part.subspan(taken);
        rest -= taken;
      }
    }
  }

  // Takes blocks past the end of the file, so that appending rarely has to find some. In vain where
  // the file system cannot: a full disk shows when it is written to.
  void allocate(std::int64_t size) {
#if defined(__linux__)
    if (size <= allocated_) return;
    const std::int64_t more = size - allocated_ + kAllocate;
    (void)::fallocate(fd_, FALLOC_FL_KEEP_SIZE, allocated_, more);
    allocated_ += more;
#else
    (void)size;
#endif
  }

  void sync() {
    synced_ = Clock::now();
    if (!dirty_) return;
#if defined(__linux__)
    const int failed = ::fdatasync(fd_);
#else
    const int failed = ::fsync(fd_);
#endif
    // EINVAL: a pipe or another thing that has no disk below it.
    if (failed != 0 && errno != EINVAL) return stop_recording(errno);
    dirty_ = false;
    ++syncs;
  }

  void watch_space() {
    if (policy_.reserve == 0 || seconds_since(looked_) < 1.0) return;
    looked_ = Clock::now();
    struct statvfs disk{};
    if (::fstatvfs(fd_, &disk) != 0) return;
    if (std::uint64_t{disk.f_bavail} * disk.f_frsize < policy_.reserve) stop_recording(kNoReserve);
  }

  void stop_recording(int why) {
    ring.end();
    error = why;
  }

  int fd_;
  TapePolicy policy_;
  std::int64_t size_ = 0, allocated_ = 0;
  bool dirty_ = false;
  Clock::time_point synced_ = Clock::now(), looked_{};
  std::mutex mutex_;
  std::condition_variable changed_;
  bool stopping_ = false, done_ = false;
};

}  // namespace neds
