// The Python side of the library: importing it runs the registrations linked into it.
#include <Python.h>

#if defined(__clang__)
#define COMPILER __VERSION__  // begins with the compiler's name
#elif defined(__GNUC__)
#define COMPILER "gcc " __VERSION__
#else
#define COMPILER "unknown"
#endif

PyMODINIT_FUNC PyInit__C(void) {
  static struct PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", "Operators and CPU kernels.", -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  PyObject* module = PyModule_Create(&definition);
  if (!module) return nullptr;
  if (PyModule_AddStringConstant(module, "compiler", COMPILER) < 0) {
    Py_DECREF(module);
    return nullptr;
  }
  return module;
}
