/* What every eager op does, in C: `tensor.empty`, the end of an `Allocation`, `graph.record` and `dispatch.dispatch`.
 *
 * setup(Tensor, Allocation, Version, FreeList, Layout, ledger, empty) takes the classes, whose slots are then written
 * by their offsets, and the Python function that serves where a free list is empty, the ledger is listened to, or
 * `slow(True)` was called. It returns (empty, release). setup_record(...) does likewise for record, whose Python form
 * serves where somebody listens, a hook is in force, or there may be a recipe. writes.c, backward.c and engine.c are
 * compiled together with this, in one module.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#define SLOT(object, offset) (*(PyObject **)((char *)(object) + (offset)))

static PyTypeObject *tensor_type, *allocation_type, *version_type;
static PyObject *ledger, *otherwise, *zero, *one;
static int slow;

static Py_ssize_t t_layout, t_storage, t_ptr, t_version, t_requires, t_node, t_grad, t_alias, t_hooks;
static Py_ssize_t a_ptr, a_nbytes, a_device, a_free, a_block, a_buffer;
static Py_ssize_t v_value, f_device, l_free, l_allocation, l_contiguous, b_live, b_peak, b_allocations, b_listeners;

static inline void put(PyObject *object, Py_ssize_t offset, PyObject *value) {
  SLOT(object, offset) = Py_NewRef(value); /* the slot is empty */
}

static inline void replace(PyObject *object, Py_ssize_t offset, PyObject *stolen) {
  PyObject *old = SLOT(object, offset);
  SLOT(object, offset) = stolen;
  Py_XDECREF(old);
}

static PyObject *empty(PyObject *module, PyObject *const *args, Py_ssize_t count, PyObject *names) {
  /* the second argument may be given by its name, inference */
  if (count < 1 || count + (names ? PyTuple_GET_SIZE(names) : 0) != 2)
    return PyObject_Vectorcall(otherwise, args, count, names); /* which raises */
  PyObject *layout = args[0];
  PyObject *free = SLOT(layout, l_free);
  Py_ssize_t left = free && PyList_Check(free) ? PyList_GET_SIZE(free) : 0;
  if (slow || !left || PyTuple_GET_SIZE(SLOT(ledger, b_listeners))) 
    return PyObject_Vectorcall(otherwise, args, count, names);

  PyObject *block = Py_NewRef(PyList_GET_ITEM(free, left - 1));
  if (PyList_SetSlice(free, left - 1, left, NULL)) return NULL;
  PyObject *storage = allocation_type->tp_alloc(allocation_type, 0);
  PyObject *t = tensor_type->tp_alloc(tensor_type, 0);
  PyObject *version = args[1] == Py_True ? NULL : version_type->tp_alloc(version_type, 0);
  PyObject *nbytes = SLOT(layout, l_allocation);
  PyObject *live = PyNumber_Add(SLOT(ledger, b_live), nbytes);
  PyObject *allocations = PyNumber_Add(SLOT(ledger, b_allocations), one);
  int higher = live ? PyObject_RichCompareBool(live, SLOT(ledger, b_peak), Py_GT) : -1;
  if (!storage || !t || (!version && args[1] != Py_True) || !allocations || higher < 0) {
    PyList_Append(free, block);
    Py_DECREF(block); Py_XDECREF(storage); Py_XDECREF(t); Py_XDECREF(version); Py_XDECREF(live);
    Py_XDECREF(allocations);
    return NULL;
  }
  if (higher) replace(ledger, b_peak, Py_NewRef(live));
  replace(ledger, b_live, live);
  replace(ledger, b_allocations, allocations);

  PyObject *address = PyTuple_GET_ITEM(block, 0);
  put(storage, a_ptr, address);
  put(storage, a_nbytes, nbytes);
  put(storage, a_device, SLOT(free, f_device));
  put(storage, a_free, free);
  SLOT(storage, a_block) = block;
  put(storage, a_buffer, Py_None);

  put(t, t_layout, layout);
  SLOT(t, t_storage) = storage;
  put(t, t_ptr, address);
  if (version) put(version, v_value, zero);
  SLOT(t, t_version) = version ? version : Py_NewRef(Py_None);
  put(t, t_requires, Py_False);
  put(t, t_node, Py_None);
  put(t, t_grad, Py_None);
  put(t, t_alias, Py_None);
  put(t, t_hooks, Py_None);
  return t;
}

static PyObject *release(PyObject *module, PyObject *self) {
  PyObject *nbytes = SLOT(self, a_nbytes);
  if (!nbytes) Py_RETURN_NONE; /* its allocation failed */
  PyObject *free = SLOT(self, a_free);
  if (free && free != Py_None && PyList_Append(free, SLOT(self, a_block))) return NULL;
  PyObject *live = PyNumber_Subtract(SLOT(ledger, b_live), nbytes);
  if (!live) return NULL;
  replace(ledger, b_live, live);
  PyObject *listeners = Py_NewRef(SLOT(ledger, b_listeners));
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(listeners); i++) {
    PyObject *done = PyObject_CallMethod(PyTuple_GET_ITEM(listeners, i), "freed", "O", self);
    if (!done) {
      Py_DECREF(listeners);
      return NULL;
    }
    Py_DECREF(done);
  }
  Py_DECREF(listeners);
  Py_RETURN_NONE;
}

static PyTypeObject *node_type, *saved_type, *rule_type;
static PyObject *record_otherwise, *graph, *saver, *itself, *next_key, *on_save, *find_origin;
static Py_ssize_t r_wanted, r_saves, r_numbers, r_edged, r_big, r_large, r_source, r_signs;
static Py_ssize_t s_storage, s_layout, s_ptr, s_version, s_expected, s_edge, s_name;
static Py_ssize_t n_rule, n_edges, n_saved, n_numbers, n_layout, n_key, n_undecided, n_intact;
static Py_ssize_t n_none[8]; /* origin, hooks, retains, prehooks, posthooks, metadata_, recipe, lent */

static inline PyObject *item(PyObject *sequence, Py_ssize_t i) { /* of a tuple or list, borrowed */
  return PyTuple_CheckExact(sequence) ? PyTuple_GET_ITEM(sequence, i) : PyList_GET_ITEM(sequence, i);
}

static inline int listening(PyObject *name) {
  PyObject *listener = PyDict_GetItemWithError(graph, name);
  return listener != Py_None;
}

/* Whether a node keeps its own result as it is: `own` in graph.py. */
static int keeps_result(PyObject *maker) {
  PyObject *saved = SLOT(maker, n_saved);
  if (!saved || saved == Py_None) return 0;
  for (Py_ssize_t k = 0; k < PyTuple_GET_SIZE(saved); k++) {
    PyObject *s = PyTuple_GET_ITEM(saved, k);
    if (Py_TYPE(s) == saved_type && SLOT(s, s_edge) == itself) return 1;
  }
  return 0;
}

static int saves(PyObject *rule, Py_ssize_t input) {
  PyObject *pairs = SLOT(rule, r_saves);
  for (Py_ssize_t k = 0; k < PyTuple_GET_SIZE(pairs); k++)
    if (PyLong_AsSsize_t(PyTuple_GET_ITEM(PyTuple_GET_ITEM(pairs, k), 0)) == input) return 1;
  return 0;
}

/* Whether it is clear that there is no recipe for what a rule saves, nor for its result, and what becomes of a relu
 * before it: see recompute.py and signs.py, which do the rest. Anything unusual is not clear. */
static int without_recipe(PyObject *rule, PyObject *inputs, PyObject *out) {
  if (SLOT(rule, r_big) == Py_False && SLOT(rule, r_large) == Py_False && SLOT(rule, r_edged) == Py_False) return 1;
  if (SLOT(rule, r_signs) == Py_True && SLOT(SLOT(out, t_layout), l_contiguous) != Py_True) return 0;
  Py_ssize_t n = Py_SIZE(inputs);
  PyObject *kept = SLOT(rule, r_saves), *wanted = SLOT(rule, r_wanted);
  for (Py_ssize_t k = 0; k < PyTuple_GET_SIZE(kept); k++) {
    Py_ssize_t i = PyLong_AsSsize_t(PyTuple_GET_ITEM(PyTuple_GET_ITEM(kept, k), 0));
    if (i == n && SLOT(rule, r_source) != Py_None && SLOT(rule, r_edged) == Py_False) return 0; /* of what is saved */
    PyObject *maker = i < n ? SLOT(item(inputs, i), t_node) : Py_None;
    if (maker == Py_None) continue;
    PyObject *made_by = SLOT(maker, n_rule);
    if (!PyObject_TypeCheck(made_by, rule_type)) return 0;
    if (SLOT(made_by, r_source) != Py_None && !keeps_result(maker)) return 0;
  }
  int edged = SLOT(rule, r_edged) == Py_True;
  for (Py_ssize_t k = 0; k < PyTuple_GET_SIZE(wanted); k++) {
    Py_ssize_t i = PyLong_AsSsize_t(PyTuple_GET_ITEM(wanted, k));
    PyObject *maker = SLOT(item(inputs, i), t_node);
    if (edged && maker == Py_None) return 0; /* a leaf: the result can be made of it again */
    if (maker == Py_None) continue;
    PyObject *made_by = SLOT(maker, n_rule);
    if (!PyObject_TypeCheck(made_by, rule_type)) return 0;
    if (edged && (SLOT(made_by, r_source) != Py_None || keeps_result(maker))) return 0;
    if (SLOT(maker, n_undecided) != Py_False && !(SLOT(made_by, r_signs) == Py_True && saves(rule, i))) return 0;
  }
  return 1;
}

/* Whether the C form may do it all: nobody listens, and things are kept as they are. -1: an error. */
static int plain(PyObject *rule, PyObject *inputs, PyObject *out) {
  if (!PyObject_TypeCheck(rule, rule_type)) return 0;
  if (listening(on_save) || listening(find_origin)) return 0;
  PyObject *how;
  if (PyContextVar_Get(saver, NULL, &how)) return -1;
  int keep = how == (PyObject *)saved_type;
  int lean = how == Py_None && without_recipe(rule, inputs, out);
  Py_XDECREF(how);
  return keep ? 1 : lean ? 2 : 0;
}

static PyObject *save(PyObject *t, PyObject *name, int own) {
  PyObject *s = saved_type->tp_alloc(saved_type, 0);
  if (!s) return NULL;
  PyObject *version = SLOT(t, t_version), *node = SLOT(t, t_node);
  put(s, s_storage, SLOT(t, t_storage));
  put(s, s_layout, SLOT(t, t_layout));
  put(s, s_ptr, SLOT(t, t_ptr));
  put(s, s_version, version);
  put(s, s_expected, SLOT(version, v_value));
  put(s, s_edge, own ? itself : node != Py_None ? node : SLOT(t, t_requires) == Py_True ? t : Py_None);
  put(s, s_name, name);
  return s;
}

static PyObject *record(PyObject *module, PyObject *const *args, Py_ssize_t count) {
  if (count != 4) return PyErr_Format(PyExc_TypeError, "record: expected 4 arguments, got %zd", count);
  PyObject *out = args[0], *rule = args[1], *inputs = args[2], *outs = args[3];
  int sequences = (PyTuple_CheckExact(inputs) || PyList_CheckExact(inputs)) &&
                  (PyTuple_CheckExact(outs) || PyList_CheckExact(outs));
  int quick = sequences ? plain(rule, inputs, out) : 0;
  if (quick < 0) return NULL;
  if (!quick) return PyObject_Vectorcall(record_otherwise, args, count, NULL);
  PyObject *wanted = SLOT(rule, r_wanted), *saves = SLOT(rule, r_saves), *numbered = SLOT(rule, r_numbers);
  Py_ssize_t n = Py_SIZE(inputs), n_wanted = PyTuple_GET_SIZE(wanted), n_saves = PyTuple_GET_SIZE(saves);
  PyObject *edges = PyTuple_New(n_wanted), *saved = PyTuple_New(n_saves);
  PyObject *numbers = PyTuple_New(PyTuple_GET_SIZE(numbered)), *node = NULL, *key = NULL;
  if (!edges || !saved || !numbers) goto fail;
  for (Py_ssize_t k = 0; k < n_wanted; k++) {
    PyObject *input = item(inputs, PyLong_AsSsize_t(PyTuple_GET_ITEM(wanted, k)));
    PyObject *maker = SLOT(input, t_node);
    PyTuple_SET_ITEM(edges, k, Py_NewRef(maker != Py_None ? maker : input));
    if (quick == 2 && maker != Py_None && SLOT(maker, n_undecided) != Py_False)
      replace(maker, n_undecided, Py_NewRef(Py_False)); /* a relu, whose result this node keeps */
  }
  for (Py_ssize_t k = 0; k < n_saves; k++) {
    PyObject *pair = PyTuple_GET_ITEM(saves, k);
    Py_ssize_t i = PyLong_AsSsize_t(PyTuple_GET_ITEM(pair, 0));
    PyObject *t = i < n ? item(inputs, i) : item(outs, i - n);
    if (SLOT(t, t_version) == Py_None) { /* an inference tensor: the Python form raises */
      Py_DECREF(edges); Py_DECREF(saved); Py_DECREF(numbers);
      return PyObject_Vectorcall(record_otherwise, args, count, NULL);
    }
    PyObject *s = save(t, PyTuple_GET_ITEM(pair, 1), i == n);
    if (!s) goto fail;
    PyTuple_SET_ITEM(saved, k, s);
  }
  for (Py_ssize_t k = 0; k < PyTuple_GET_SIZE(numbered); k++)
    PyTuple_SET_ITEM(numbers, k, Py_NewRef(item(inputs, PyLong_AsSsize_t(PyTuple_GET_ITEM(numbered, k)))));
  if (!(node = node_type->tp_alloc(node_type, 0)) || !(key = PyObject_CallNoArgs(next_key))) goto fail;
  put(node, n_rule, rule);
  SLOT(node, n_edges) = edges;
  SLOT(node, n_saved) = saved;
  SLOT(node, n_numbers) = numbers;
  put(node, n_layout, SLOT(out, t_layout));
  SLOT(node, n_key) = key;
  put(node, n_undecided, quick == 2 && SLOT(rule, r_signs) == Py_True && SLOT(rule, r_big) == Py_True ? Py_True : Py_False);
  put(node, n_intact, Py_False); /* where it matters, a maker's result cannot be made again anyway */
  for (size_t k = 0; k < sizeof n_none / sizeof *n_none; k++) put(node, n_none[k], Py_None);
  replace(out, t_node, node);
  replace(out, t_requires, Py_NewRef(Py_True));
  Py_RETURN_NONE;
fail:
  Py_XDECREF(edges); Py_XDECREF(saved); Py_XDECREF(numbers); Py_XDECREF(node); Py_XDECREF(key);
  return NULL;
}

static PyObject *dispatch_otherwise, *dispatching, *mode_variable, *observer, *plans_name;
static Py_ssize_t p_outs, p_launch, p_rule, m_inference, m_record;

/* Gives outs[0] its node where one of the inputs wants a gradient. -1: an error. */
static int record_one(PyObject *plan, PyObject *inputs, PyObject *outs) {
  unsigned long mask = 0;
  for (Py_ssize_t i = 0; i < Py_SIZE(inputs); i++) {
    PyObject *a = item(inputs, i);
    if (!PyObject_TypeCheck(a, tensor_type)) continue;
    if (SLOT(a, t_alias) != Py_None || i >= 60) { /* a view: its history may have to be brought up to date */
      PyObject *python = PyDict_GetItemString(dispatching, "record");
      PyObject *done = PyObject_CallFunctionObjArgs(python, plan, inputs, outs, NULL);
      Py_XDECREF(done);
      return done ? 0 : -1;
    }
    if (SLOT(a, t_requires) == Py_True) mask |= 1ul << i;
  }
  if (!mask) return 0;
  PyObject *number = PyLong_FromUnsignedLong(mask);
  PyObject *rule = number ? PyObject_CallOneArg(SLOT(plan, p_rule), number) : NULL;
  Py_XDECREF(number);
  if (!rule) return -1;
  PyObject *done = NULL;
  if (rule == Py_None) {
    done = Py_NewRef(Py_None);
  } else {
    PyObject *given[] = {PyList_GET_ITEM(outs, 0), rule, inputs, outs};
    done = record(NULL, given, 4);
  }
  Py_DECREF(rule);
  Py_XDECREF(done);
  return done ? 0 : -1;
}

static PyObject *dispatch(PyObject *module, PyObject *const *args, Py_ssize_t count) {
  if (count < 2 || count > 3) return PyObject_Vectorcall(dispatch_otherwise, args, count, NULL); /* which raises */
  PyObject *op = args[0], *inputs = args[1], *settings = count == 3 ? args[2] : NULL;
  if ((!PyTuple_CheckExact(inputs) && !PyList_CheckExact(inputs)) || (settings && !PyTuple_CheckExact(settings)) ||
      PyDict_GetItemWithError(dispatching, observer) != Py_None)
    return PyObject_Vectorcall(dispatch_otherwise, args, count, NULL);
  Py_ssize_t n = Py_SIZE(inputs), further = settings ? PyTuple_GET_SIZE(settings) : 0;
  PyObject *key = PyTuple_New(n + further), *plans = PyObject_GetAttr(op, plans_name);
  if (!key || !plans) {
    Py_XDECREF(key); Py_XDECREF(plans);
    return NULL;
  }
  for (Py_ssize_t i = 0; i < n; i++) {
    PyObject *a = item(inputs, i);
    PyTuple_SET_ITEM(key, i, Py_NewRef(PyObject_TypeCheck(a, tensor_type) ? SLOT(a, t_layout) : (PyObject *)Py_TYPE(a)));
  }
  for (Py_ssize_t i = 0; i < further; i++) PyTuple_SET_ITEM(key, n + i, Py_NewRef(PyTuple_GET_ITEM(settings, i)));
  PyObject *plan = PyDict_GetItemWithError(plans, key);
  Py_XINCREF(plan);
  Py_DECREF(key); Py_DECREF(plans);
  if (!plan) {
    if (PyErr_Occurred()) return NULL;
    return PyObject_Vectorcall(dispatch_otherwise, args, count, NULL);
  }
  PyObject *mode, *layouts = SLOT(plan, p_outs), *outs = PyList_New(PyTuple_GET_SIZE(layouts)), *result = NULL;
  Py_ssize_t n_outs = PyTuple_GET_SIZE(layouts);
  if (PyContextVar_Get(mode_variable, NULL, &mode)) mode = NULL;
  PyObject *values[64];
  Py_ssize_t given = 0;
  if (!mode || !outs) goto done;
  if (n + n_outs > 63) { /* none has so many */
    result = PyObject_Vectorcall(dispatch_otherwise, args, count, NULL);
    Py_CLEAR(outs);
    goto done;
  }
  for (Py_ssize_t i = 0; i < n_outs; i++) {
    PyObject *wanted[] = {PyTuple_GET_ITEM(layouts, i), SLOT(mode, m_inference)};
    PyObject *t = empty(NULL, wanted, 2, NULL);
    if (!t) goto done;
    PyList_SET_ITEM(outs, i, t);
    values[given++] = SLOT(t, t_ptr);
  }
  for (Py_ssize_t i = 0; i < n; i++)
    if (PyObject_TypeCheck(item(inputs, i), tensor_type)) values[given++] = SLOT(item(inputs, i), t_ptr);
  for (Py_ssize_t i = 0; i < n; i++) {
    PyObject *a = item(inputs, i);
    if (a != Py_None && !PyObject_TypeCheck(a, tensor_type)) values[given++] = a;
  }
  PyObject *launched = PyObject_Vectorcall(SLOT(plan, p_launch), values, given, NULL);
  if (!launched) goto done;
  Py_DECREF(launched);
  if (SLOT(mode, m_record) == Py_True && record_one(plan, inputs, outs)) goto done;
  result = Py_NewRef(outs);
done:
  Py_XDECREF(mode); Py_XDECREF(outs); Py_DECREF(plan);
  return result;
}

static PyMethodDef hot[] = {
  {"empty", (PyCFunction)(void (*)(void))empty, METH_FASTCALL | METH_KEYWORDS, "An uninitialised tensor."},
  {"release", release, METH_O, "The end of an allocation."},
  {"record", (PyCFunction)(void (*)(void))record, METH_FASTCALL, "Give a result its node."},
  {"dispatch", (PyCFunction)(void (*)(void))dispatch, METH_FASTCALL, "Run an op; returns all its results."},
};

static Py_ssize_t offset(PyObject *type, const char *name) {
  PyObject *found = PyObject_GetAttrString(type, name);
  if (!found) return -1;
  Py_ssize_t at = -1;
  if (Py_TYPE(found) == &PyMemberDescr_Type)
    at = ((PyMemberDescrObject *)found)->d_member->offset;
  else
    PyErr_Format(PyExc_TypeError, "%s is not a slot", name);
  Py_DECREF(found);
  return at;
}

static PyObject *setup(PyObject *module, PyObject *args) {
  PyObject *tensor, *allocation, *version, *list, *layout;
  if (!PyArg_ParseTuple(args, "OOOOOOO", &tensor, &allocation, &version, &list, &layout, &ledger, &otherwise)) return NULL;
  struct { Py_ssize_t *at; PyObject *type; const char *name; } wanted[] = {
    {&t_layout, tensor, "layout"}, {&t_storage, tensor, "storage"}, {&t_ptr, tensor, "ptr"},
    {&t_version, tensor, "version"}, {&t_requires, tensor, "_requires_grad"}, {&t_node, tensor, "node"},
    {&t_grad, tensor, "_grad"}, {&t_alias, tensor, "alias"}, {&t_hooks, tensor, "hooks"},
    {&a_ptr, allocation, "ptr"}, {&a_nbytes, allocation, "nbytes"}, {&a_device, allocation, "device"},
    {&a_free, allocation, "free"}, {&a_block, allocation, "block"}, {&a_buffer, allocation, "_buffer"},
    {&v_value, version, "value"}, {&f_device, list, "device"}, {&l_free, layout, "free"},
    {&l_allocation, layout, "allocation"}, {&l_contiguous, layout, "contiguous"}, {&b_live, (PyObject *)Py_TYPE(ledger), "live_bytes"},
    {&b_peak, (PyObject *)Py_TYPE(ledger), "peak_bytes"}, {&b_allocations, (PyObject *)Py_TYPE(ledger), "allocations"},
    {&b_listeners, (PyObject *)Py_TYPE(ledger), "listeners"},
  };
  for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
    if ((*wanted[i].at = offset(wanted[i].type, wanted[i].name)) < 0) return NULL;
  tensor_type = (PyTypeObject *)Py_NewRef(tensor);
  allocation_type = (PyTypeObject *)Py_NewRef(allocation);
  version_type = (PyTypeObject *)Py_NewRef(version);
  Py_INCREF(ledger);
  Py_INCREF(otherwise);
  PyObject *made = PyCFunction_New(&hot[0], NULL), *freed = PyCFunction_New(&hot[1], NULL);
  PyObject *method = freed ? PyInstanceMethod_New(freed) : NULL; /* a C function is no method by itself */
  Py_XDECREF(freed);
  return made && method ? Py_BuildValue("NN", made, method) : NULL;
}

static PyObject *setup_record(PyObject *module, PyObject *args) {
  PyObject *node, *saved, *rule;
  if (!PyArg_ParseTuple(args, "OOOOOOOO", &node, &saved, &rule, &graph, &saver, &itself, &next_key, &record_otherwise))
    return NULL;
  struct { Py_ssize_t *at; PyObject *type; const char *name; } wanted[] = {
    {&r_wanted, rule, "wanted"}, {&r_saves, rule, "saves"}, {&r_numbers, rule, "numbers"}, {&r_edged, rule, "edged"},
    {&r_big, rule, "big"}, {&r_large, rule, "large"}, {&r_source, rule, "source"}, {&r_signs, rule, "signs"},
    {&s_storage, saved, "storage"}, {&s_layout, saved, "layout"}, {&s_ptr, saved, "ptr"},
    {&s_version, saved, "version"}, {&s_expected, saved, "expected"}, {&s_edge, saved, "edge"}, {&s_name, saved, "name"},
    {&n_rule, node, "rule"}, {&n_edges, node, "edges"}, {&n_saved, node, "saved"}, {&n_numbers, node, "numbers"},
    {&n_layout, node, "layout"}, {&n_key, node, "key"}, {&n_undecided, node, "undecided"}, {&n_intact, node, "intact"},
    {&n_none[0], node, "origin"}, {&n_none[1], node, "hooks"}, {&n_none[2], node, "retains"},
    {&n_none[3], node, "prehooks"}, {&n_none[4], node, "posthooks"}, {&n_none[5], node, "metadata_"},
    {&n_none[6], node, "recipe"}, {&n_none[7], node, "lent"},
  };
  for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
    if ((*wanted[i].at = offset(wanted[i].type, wanted[i].name)) < 0) return NULL;
  node_type = (PyTypeObject *)Py_NewRef(node);
  saved_type = (PyTypeObject *)Py_NewRef(saved);
  rule_type = (PyTypeObject *)Py_NewRef(rule);
  for (PyObject **held[] = {&graph, &saver, &itself, &next_key, &record_otherwise, NULL}, ***at = held; *at; at++)
    Py_INCREF(**at);
  on_save = PyUnicode_InternFromString("on_save");
  find_origin = PyUnicode_InternFromString("find_origin");
  return on_save && find_origin ? PyCFunction_New(&hot[2], NULL) : NULL;
}

static PyObject *setup_dispatch(PyObject *module, PyObject *args) {
  PyObject *plan, *mode;
  if (!PyArg_ParseTuple(args, "OOOOO", &plan, &mode, &dispatching, &mode_variable, &dispatch_otherwise)) return NULL;
  struct { Py_ssize_t *at; PyObject *type; const char *name; } wanted[] = {
    {&p_outs, plan, "outs"}, {&p_launch, plan, "launch"}, {&p_rule, plan, "rule"},
    {&m_inference, mode, "inference"}, {&m_record, mode, "record"},
  };
  for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
    if ((*wanted[i].at = offset(wanted[i].type, wanted[i].name)) < 0) return NULL;
  Py_INCREF(dispatching); Py_INCREF(mode_variable); Py_INCREF(dispatch_otherwise);
  observer = PyUnicode_InternFromString("observer");
  plans_name = PyUnicode_InternFromString("plans");
  return observer && plans_name ? PyCFunction_New(&hot[3], NULL) : NULL;
}

static PyObject *set_slow(PyObject *module, PyObject *value) {
  slow = PyObject_IsTrue(value);
  Py_RETURN_NONE;
}

static PyObject *setup_writes(PyObject *, PyObject *), *setup_backward(PyObject *, PyObject *);
static PyObject *setup_engine(PyObject *, PyObject *);
static PyMethodDef methods[] = {
  {"setup", setup, METH_VARARGS, "(empty, release) for these classes."},
  {"setup_record", setup_record, METH_VARARGS, "record for these classes."},
  {"setup_dispatch", setup_dispatch, METH_VARARGS, "dispatch for these classes."},
  {"setup_writes", setup_writes, METH_O, "announce_writes of graph.py, whose Python form is given."},
  {"setup_backward", setup_backward, METH_VARARGS, "_pointwise and _formulas of backward.py for these classes."},
  {"setup_engine", setup_engine, METH_VARARGS, "survey and advance of engine.py for these classes."},
  {"slow", set_slow, METH_O, "Whether all goes the Python way."},
  {0},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "tgrad_eager", 0, -1, methods};

PyMODINIT_FUNC PyInit_tgrad_eager(void) {
  zero = PyLong_FromLong(0);
  one = PyLong_FromLong(1);
  return zero && one ? PyModule_Create(&definition) : NULL;
}
