/* A launch of one compiled kernel with everything fixed but its leading arguments: addresses and numbers.
 *
 * make(function, grid x, y, z, threads, shared bytes, runtime count, kinds, fixed values, scratch) returns a callable
 * that takes the run-time values as positional arguments. kinds has a letter per parameter: P address, i int32, l int64,
 * f float32, d float64. Triton's kernels end with two scratch pointers: the first is what set_scratch gave last if
 * `scratch` is true, else null; the second is null.
 *
 * While note(list) is in force, launches are captured by the thread that called it: the addresses that each is given are
 * added to the list, and other threads' launches are refused.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <dlfcn.h>
#include <stddef.h>
#include "cuda.h"

#define MOST 160

typedef union { uint64_t address; int64_t l; int32_t i; float f; double d; } Value;

typedef struct {
  PyObject_HEAD
  vectorcallfunc call;
  CUlaunchConfig config;
  CUfunction function;
  int runtime, total, scratch;
  char kinds[MOST];
  Value values[MOST];
} Launcher;

static CUresult (*launch_kernel)(const CUlaunchConfig *, CUfunction, void **, void **);
static CUresult (*error_string)(CUresult, const char **);
static CUresult (*get_context)(CUcontext *);
static CUresult (*set_context)(CUcontext);
static CUresult (*count_devices)(int *);
static CUcontext context; /* the one that kernels were prepared in: a thread that has not used CUDA yet has none */
static int several; /* whether there are other devices, of which one may be the thread's current one */
static CUstream stream;
static uint64_t scratch; /* memory that the kernels of the stream share */
static PyObject *noted; /* a list, or NULL */
static unsigned long noting; /* the thread that captures */

static int convert(char kind, PyObject *object, Value *value) {
  switch (kind) {
  case 'P': value->address = PyLong_AsUnsignedLongLong(object); break;
  case 'l': value->l = PyLong_AsLongLong(object); break;
  case 'f': value->f = (float)PyFloat_AsDouble(object); break;
  case 'd': value->d = PyFloat_AsDouble(object); break;
  default: {
    long l = PyLong_AsLong(object);
    if ((int32_t)l != l && !PyErr_Occurred()) PyErr_SetString(PyExc_OverflowError, "an int32 argument does not fit");
    value->i = (int32_t)l;
  }
  }
  return PyErr_Occurred() ? -1 : 0;
}

static int note(const Launcher *launcher, PyObject *const *args) {
  if (PyThread_get_thread_ident() != noting) {
    PyErr_SetString(PyExc_RuntimeError,
                    "another thread is capturing a CUDA graph: nothing else can be launched until it has");
    return -1;
  }
  for (int i = 0; i < launcher->runtime; i++)
    if (launcher->kinds[i] == 'P' && PyList_Append(noted, args[i])) return -1;
  return 0;
}

/* In the context of the kernels; the thread's own is put back. */
static CUresult launch_in_context(const CUlaunchConfig *config, CUfunction function, void **parameters) {
  CUcontext here = context;
  if (several) get_context(&here);
  if (here == context) {
    CUresult result = launch_kernel(config, function, parameters, NULL);
    if (several || result != CUDA_ERROR_INVALID_CONTEXT) return result;
    here = NULL;
  }
  CUresult result = set_context(context);
  if (result == CUDA_SUCCESS) result = launch_kernel(config, function, parameters, NULL);
  if (here) set_context(here);
  return result;
}

static PyObject *launch(PyObject *self, PyObject *const *args, size_t count, PyObject *names) {
  Launcher *launcher = (Launcher *)self;
  Value values[MOST];
  void *parameters[MOST];
  if (PyVectorcall_NARGS(count) != launcher->runtime || names) {
    PyErr_Format(PyExc_TypeError, "launch: expected %d values, got %zd", launcher->runtime, PyVectorcall_NARGS(count));
    return NULL;
  }
  for (int i = 0; i < launcher->runtime; i++) {
    if (convert(launcher->kinds[i], args[i], &values[i])) return NULL;
    parameters[i] = &values[i];
  }
  for (int i = launcher->runtime; i < launcher->total; i++) parameters[i] = &launcher->values[i];
  if (noted && note(launcher, args)) return NULL;
  uint64_t memory = scratch;
  if (launcher->scratch) parameters[launcher->total - 2] = &memory;
  CUlaunchConfig config = launcher->config;
  config.hStream = stream;
  CUresult result;
  Py_BEGIN_ALLOW_THREADS
  result = launch_in_context(&config, launcher->function, parameters);
  Py_END_ALLOW_THREADS
  if (result) {
    const char *text = "unknown error";
    error_string(result, &text);
    return PyErr_Format(PyExc_RuntimeError, "CUDA error %d at a launch: %s", (int)result, text);
  }
  Py_RETURN_NONE;
}

static PyTypeObject LauncherType = {
  PyVarObject_HEAD_INIT(NULL, 0)
  .tp_name = "tgrad_launcher.Launcher",
  .tp_basicsize = sizeof(Launcher),
  .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_VECTORCALL,
  .tp_vectorcall_offset = offsetof(Launcher, call),
  .tp_call = PyVectorcall_Call,
};

static PyObject *make(PyObject *module, PyObject *args) {
  unsigned long long function;
  unsigned x, y, z, threads, shared;
  int runtime, uses_scratch;
  const char *kinds;
  Py_ssize_t count;
  PyObject *fixed;
  if (!PyArg_ParseTuple(args, "KIIIIIis#O!p", &function, &x, &y, &z, &threads, &shared, &runtime, &kinds, &count,
                        &PyTuple_Type, &fixed, &uses_scratch))
    return NULL;
  if (count + 2 > MOST || runtime + PyTuple_GET_SIZE(fixed) != count) {
    PyErr_Format(PyExc_ValueError, "make: %zd parameters, %d run-time and %zd fixed values", count, runtime,
                 PyTuple_GET_SIZE(fixed));
    return NULL;
  }
  CUcontext here = NULL;
  int devices = 1;
  if (get_context(&here) == CUDA_SUCCESS && here) context = here;
  if (count_devices(&devices) == CUDA_SUCCESS) several = devices > 1;
  Launcher *launcher = PyObject_New(Launcher, &LauncherType);
  if (!launcher) return NULL;
  launcher->call = launch;
  launcher->function = (CUfunction)function;
  launcher->runtime = runtime;
  launcher->total = count + 2;
  launcher->scratch = uses_scratch;
  memset(&launcher->config, 0, sizeof launcher->config);
  launcher->config.gridDimX = x; launcher->config.gridDimY = y; launcher->config.gridDimZ = z;
  launcher->config.blockDimX = threads; launcher->config.blockDimY = 1; launcher->config.blockDimZ = 1;
  launcher->config.sharedMemBytes = shared;
  memset(launcher->values, 0, sizeof launcher->values);
  memcpy(launcher->kinds, kinds, count);
  for (int i = runtime; i < count; i++)
    if (convert(kinds[i], PyTuple_GET_ITEM(fixed, i - runtime), &launcher->values[i])) {
      Py_DECREF(launcher);
      return NULL;
    }
  return (PyObject *)launcher;
}

static PyObject *set_stream(PyObject *module, PyObject *address) {
  stream = (CUstream)PyLong_AsUnsignedLongLong(address);
  if (PyErr_Occurred()) return NULL;
  Py_RETURN_NONE;
}

static PyObject *set_scratch(PyObject *module, PyObject *address) {
  scratch = PyLong_AsUnsignedLongLong(address);
  if (PyErr_Occurred()) return NULL;
  Py_RETURN_NONE;
}

static PyObject *set_noted(PyObject *module, PyObject *list) {
  if (list != Py_None && !PyList_Check(list)) return PyErr_Format(PyExc_TypeError, "note: expected a list or None");
  noting = PyThread_get_thread_ident();
  Py_XDECREF(noted);
  noted = list == Py_None ? NULL : Py_NewRef(list);
  Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
  {"make", make, METH_VARARGS, "A launch with its fixed values."},
  {"set_stream", set_stream, METH_O, "The stream, by its address, that all launches go to; 0 is the default one."},
  {"set_scratch", set_scratch, METH_O, "The address of the scratch memory of the kernels that need some."},
  {"note", set_noted, METH_O, "Add the addresses of launches to a list; None: no more."},
  {0},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "tgrad_launcher", 0, -1, methods};

PyMODINIT_FUNC PyInit_tgrad_launcher(void) {
  void *driver = dlopen("libcuda.so.1", RTLD_LAZY);
  if (driver) {
    launch_kernel = dlsym(driver, "cuLaunchKernelEx");
    error_string = dlsym(driver, "cuGetErrorString");
    get_context = dlsym(driver, "cuCtxGetCurrent");
    set_context = dlsym(driver, "cuCtxSetCurrent");
    count_devices = dlsym(driver, "cuDeviceGetCount");
  }
  if (!launch_kernel || !error_string || !get_context || !set_context || !count_devices) {
    PyErr_SetString(PyExc_ImportError, "libcuda.so.1 with cuLaunchKernelEx was not found");
    return NULL;
  }
  return PyType_Ready(&LauncherType) ? NULL : PyModule_Create(&definition);
}
