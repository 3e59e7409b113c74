// Preloaded into a server: a disk for its recordings that stands still or is full. Every writev and
// fdatasync of a regular file takes NEDS_STALL_S seconds longer, and a writev fails with ENOSPC once
// NEDS_FULL_BYTES were written. Where NEDS_DISK names a file, its first byte says what the disk is
// like at the moment: 0 fine, 1 standing still, 2 full.
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <ctime>

namespace {
enum Disk : char { kFine, kStill, kFull };

const volatile char* told() {
  const char* path = std::getenv("NEDS_DISK");
  const int fd = path == nullptr ? -1 : open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return nullptr;
  void* const mapped = mmap(nullptr, 1, PROT_READ, MAP_SHARED, fd, 0);
  close(fd);
  return mapped == MAP_FAILED ? nullptr : static_cast<const volatile char*>(mapped);
}

bool regular(int fd) {
  struct stat what{};
  return fstat(fd, &what) == 0 && S_ISREG(what.st_mode);
}

char disk() {
  static const volatile char* const said = told();
  return said == nullptr ? char{kStill} : *said;
}

void stall() {
  const char* seconds = std::getenv("NEDS_STALL_S");
  if (seconds == nullptr || disk() != kStill) return;
  const double s = std::atof(seconds);
  timespec left{static_cast<time_t>(s), static_cast<long>((s - static_cast<long>(s)) * 1e9)};
  while (nanosleep(&left, &left) != 0) {}
}

bool full(const iovec* parts, int n) {
  static std::atomic<std::size_t> written{0};
  const char* limit = std::getenv("NEDS_FULL_BYTES");
  if (limit == nullptr) return false;
  std::size_t size = 0;
  for (int i = 0; i < n; ++i) size += parts[i].iov_len;
  return written.fetch_add(size) + size > static_cast<std::size_t>(std::atof(limit));
}
}  // namespace

extern "C" {
ssize_t writev(int fd, const iovec* parts, int n) {
  static const auto real = reinterpret_cast<decltype(&writev)>(dlsym(RTLD_NEXT, "writev"));
  static bool filled = false;
  if (!regular(fd)) return real(fd, parts, n);
  if (disk() == kFull) {
    if (!filled && n > 0 && parts[0].iov_len > 1) {  // the last blocks take a part of it
      filled = true;
      const iovec half{parts[0].iov_base, parts[0].iov_len / 2};
      return real(fd, &half, 1);
    }
    errno = ENOSPC;
    return -1;
  }
  stall();
  if (full(parts, n)) {
    errno = ENOSPC;
    return -1;
  }
  return real(fd, parts, n);
}
int fdatasync(int fd) {
  static const auto real = reinterpret_cast<decltype(&fdatasync)>(dlsym(RTLD_NEXT, "fdatasync"));
  if (regular(fd)) stall();
  return real(fd);
}
}
