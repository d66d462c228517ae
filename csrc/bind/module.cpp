// The Python side of each library: importing it runs the registrations linked into it.
#include <Python.h>

#if !defined(TORCH_EXTENSION_NAME)  // which torch's build defines
#define TORCH_EXTENSION_NAME _C
#endif
#define FRD_JOINED_(a, b) a##b
#define FRD_JOINED(a, b) FRD_JOINED_(a, b)
#define FRD_TEXT_(a) #a
#define FRD_TEXT(a) FRD_TEXT_(a)

#if defined(__clang__)
#define FRD_COMPILER __VERSION__  // begins with the compiler's name
#elif defined(__GNUC__)
#define FRD_COMPILER "gcc " __VERSION__
#else
#define FRD_COMPILER "unknown"
#endif

#if defined(__GLIBC__)
// The reference counts of libstdc++ ask glibc 2.32 and later whether there is one thread alone, to spare an atomic
// operation. With a definition of our own, hidden and always saying no, the library runs on older systems too: a wheel
// for manylinux_2_28 may be built on a newer one.
extern "C" __attribute__((visibility("hidden"))) char __libc_single_threaded;
char __libc_single_threaded = 0;
#endif

PyMODINIT_FUNC FRD_JOINED(PyInit_, TORCH_EXTENSION_NAME)(void) {
  static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT,
                                          FRD_TEXT(TORCH_EXTENSION_NAME),
                                          "Operators.",
                                          -1,
                                          nullptr,
                                          nullptr,
                                          nullptr,
                                          nullptr,
                                          nullptr};
  PyObject* module = PyModule_Create(&definition);
  if (!module) return nullptr;
  if (PyModule_AddStringConstant(module, "compiler", FRD_COMPILER) < 0) {
    Py_DECREF(module);
    return nullptr;
  }
  return module;
}
