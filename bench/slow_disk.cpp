// Preloaded into a server: every writev and fdatasync of a regular file takes NEDS_STALL_S seconds
// longer, as on a disk that stands still.
#include <dlfcn.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cstdlib>
#include <ctime>

namespace {
void stall(int fd) {
  struct stat what{};
  const char* seconds = std::getenv("NEDS_STALL_S");
  if (seconds == nullptr || fstat(fd, &what) != 0 || !S_ISREG(what.st_mode)) return;
  const double s = std::atof(seconds);
  timespec left{static_cast<time_t>(s), static_cast<long>((s - static_cast<long>(s)) * 1e9)};
  while (nanosleep(&left, &left) != 0) {}
}
}  // namespace

extern "C" {
ssize_t writev(int fd, const iovec* parts, int n) {
  static const auto real = reinterpret_cast<decltype(&writev)>(dlsym(RTLD_NEXT, "writev"));
  stall(fd);
  return real(fd, parts, n);
}
int fdatasync(int fd) {
  static const auto real = reinterpret_cast<decltype(&fdatasync)>(dlsym(RTLD_NEXT, "fdatasync"));
  stall(fd);
  return real(fd);
}
}
