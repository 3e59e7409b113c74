#include <nanobind/nanobind.h>

void bind_stream(nanobind::module_& m) { (void)m; }
