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
