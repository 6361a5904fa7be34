/* Before many tensors are written in place, in C: `announce_writes` of graph.py, of an optimiser's step.
 *
 * Compiled together with eager.c, whose names it uses. Whoever needs an old value is told by Python.
 */
static PyObject *announce_otherwise, *before_write, *announce_name;
static Py_ssize_t a_changed, a_readers;

static PyObject *announce_writes(PyObject *module, PyObject *tensors) {
  if ((!PyList_CheckExact(tensors) && !PyTuple_CheckExact(tensors)) || listening(before_write))
    return PyObject_CallOneArg(announce_otherwise, tensors);
  PyObject *now = PyObject_CallNoArgs(next_key);
  for (Py_ssize_t i = 0; now && i < Py_SIZE(tensors); i++) {
    PyObject *t = item(tensors, i);
    if (!PyObject_TypeCheck(t, tensor_type) || !PyObject_TypeCheck(SLOT(t, t_storage), allocation_type)) {
      PyErr_Format(PyExc_TypeError, "announce_writes: expected Tensors, got %.100s", Py_TYPE(t)->tp_name);
      Py_CLEAR(now);
      break;
    }
    PyObject *memory = Py_NewRef(SLOT(t, t_storage)), *readers = SLOT(memory, a_readers);
    int read = readers ? PyObject_IsTrue(readers) : 0;
    if (read) {
      PyObject *done = read < 0 ? NULL : PyObject_CallOneArg(PyDict_GetItemWithError(graph, announce_name), t);
      if (!done) Py_CLEAR(now);
      Py_XDECREF(done);
    }
    if (now) replace(memory, a_changed, Py_NewRef(now));
    Py_DECREF(memory);
  }
  if (!now) return NULL;
  Py_DECREF(now);
  Py_RETURN_NONE;
}

static PyMethodDef announce_method = {"announce_writes", announce_writes, METH_O, "Tell of writes to come."};

static PyObject *setup_writes(PyObject *module, PyObject *python) {
  announce_otherwise = Py_NewRef(python);
  before_write = PyUnicode_InternFromString("before_write");
  announce_name = PyUnicode_InternFromString("announce_write");
  if (!before_write || !announce_name) return NULL;
  if ((a_changed = offset((PyObject *)allocation_type, "changed")) < 0) return NULL;
  if ((a_readers = offset((PyObject *)allocation_type, "readers")) < 0) return NULL;
  return PyCFunction_New(&announce_method, NULL);
}
