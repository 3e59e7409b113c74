// Preloaded into a server: a disk for its recordings that stands still or is full. Every writev and
// fdatasync of a regular file takes NEDS_STALL_S seconds longer, and a writev fails with ENOSPC once
// NEDS_FULL_BYTES were written.
#include <dlfcn.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <ctime>

namespace {
bool is_file(int fd) {
  struct stat what{};
  return fstat(fd, &what) == 0 && S_ISREG(what.st_mode);
}

void stall() {
  const char* seconds = std::getenv("NEDS_STALL_S");
  if (seconds == nullptr) return;
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
  if (is_file(fd)) {
    stall();
    if (full(parts, n)) {
      errno = ENOSPC;
      return -1;
    }
  }
  return real(fd, parts, n);
}
int fdatasync(int fd) {
  static const auto real = reinterpret_cast<decltype(&fdatasync)>(dlsym(RTLD_NEXT, "fdatasync"));
  if (is_file(fd)) stall();
  return real(fd);
}
}
