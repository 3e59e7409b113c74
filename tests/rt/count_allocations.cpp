// Preloaded before the C library: counts what one thread asks of the heap while it is told to.
// `operator new`, PyMem_RawMalloc and everything else in a process end in these functions.
#include <cerrno>
#include <cstddef>

extern "C" {
void* __libc_malloc(std::size_t);
void* __libc_calloc(std::size_t, std::size_t);
void* __libc_realloc(void*, std::size_t);
void* __libc_memalign(std::size_t, std::size_t);
}

namespace {
// Initial-exec: looking it up must not itself allocate.
__attribute__((tls_model("initial-exec"))) thread_local bool counting = false;
__attribute__((tls_model("initial-exec"))) thread_local long counted = 0;

void note() { counted += counting; }
}  // namespace

extern "C" {
void count_allocations(bool on) { counting = on; }
long allocations_counted() { return counted; }

void* malloc(std::size_t n) noexcept { note(); return __libc_malloc(n); }
void* calloc(std::size_t n, std::size_t size) noexcept { note(); return __libc_calloc(n, size); }
void* realloc(void* p, std::size_t n) noexcept { note(); return __libc_realloc(p, n); }
void* memalign(std::size_t align, std::size_t n) noexcept { note(); return __libc_memalign(align, n); }
void* aligned_alloc(std::size_t align, std::size_t n) noexcept { return memalign(align, n); }
int posix_memalign(void** p, std::size_t align, std::size_t n) noexcept {
  *p = memalign(align, n);
  return *p == nullptr ? ENOMEM : 0;
}
}
