// The Python side of each library: importing it runs the registrations linked into it.
#include <Python.h>

#if !defined(TORCH_EXTENSION_NAME)  // which torch's build defines
#define TORCH_EXTENSION_NAME _C
#endif
#define JOINED_(a, b) a##b
#define JOINED(a, b) JOINED_(a, b)
#define TEXT_(a) #a
#define TEXT(a) TEXT_(a)

#if defined(__clang__)
#define COMPILER __VERSION__  // begins with the compiler's name
#elif defined(__GNUC__)
#define COMPILER "gcc " __VERSION__
#else
#define COMPILER "unknown"
#endif

PyMODINIT_FUNC JOINED(PyInit_, TORCH_EXTENSION_NAME)(void) {
  static struct PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, TEXT(TORCH_EXTENSION_NAME), "Operators.", -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  PyObject* module = PyModule_Create(&definition);
  if (!module) return nullptr;
  if (PyModule_AddStringConstant(module, "compiler", COMPILER) < 0) {
    Py_DECREF(module);
    return nullptr;
  }
  return module;
}
