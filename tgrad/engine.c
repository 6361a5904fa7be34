/* The walk over the graph, in C: `survey` and `advance` of engine.py. The latter does what `Walk._visit` does with a
 * node as it usually is: nobody has hooks on it, no gradient is captured, nothing is recorded. Others it leaves alone.
 *
 * Compiled together with eager.c and backward.c, whose names it uses. setup_engine(...) takes the class Walk, the names
 * of engine.py, which are looked up at each use, and the lock that guards the leaves' gradients.
 */
static PyTypeObject *walk_type;
static PyObject *engine_names, *heap_pop, *heap_push, *lock, *unlock;
static PyObject *watch_name, *fold_name, *send_name, *sum_name, *finish_name;
static Py_ssize_t k_retain, k_create, k_mode, k_capture, k_reached, k_heap, k_pending, k_leaves;

enum { AT_ONCE = 256 }; /* nodes, after which other threads get their turn */

/* --- what there is to do ------------------------------------------------------------------------------------- */
/* Adds a node to the list of those found, unless it is there. -1: an error. */
static int find(PyObject *node, PyObject *reached, PyObject *found) {
  int known = PySet_Contains(reached, SLOT(node, n_key));
  if (known) return known < 0 ? -1 : 0;
  return PySet_Add(reached, SLOT(node, n_key)) || PyList_Append(found, node) ? -1 : 0;
}

/* Counts one more consumer of a leaf. -1: an error. */
static int count_leaf(PyObject *leaf, PyObject *leaves) {
  PyObject *id = PyLong_FromVoidPtr(leaf), *entry = id ? PyDict_GetItemWithError(leaves, id) : NULL;
  int failed = !id || (!entry && PyErr_Occurred());
  if (!failed && entry) {
    PyObject *more = PyNumber_Add(PyList_GET_ITEM(entry, 3), one);
    failed = !more || PyList_SetItem(entry, 3, more);
  } else if (!failed) {
    entry = Py_BuildValue("[OOOO]", leaf, Py_None, Py_False, one);
    failed = !entry || PyDict_SetItem(leaves, id, entry);
    Py_XDECREF(entry);
  }
  Py_XDECREF(id);
  return failed ? -1 : 0;
}

static PyObject *survey(PyObject *module, PyObject *const *args, Py_ssize_t count) {
  if (count != 2 || !PyObject_TypeCheck(args[0], walk_type) || !PyList_CheckExact(args[1]))
    return PyErr_Format(PyExc_TypeError, "survey: expected a Walk and a list of tensors");
  PyObject *reached = SLOT(args[0], k_reached), *leaves = SLOT(args[0], k_leaves), *found = PyList_New(0);
  int failed = !found;
  for (Py_ssize_t i = 0; !failed && i < PyList_GET_SIZE(args[1]); i++) {
    PyObject *node = SLOT(PyList_GET_ITEM(args[1], i), t_node);
    if (node != Py_None) failed = find(node, reached, found);
  }
  for (Py_ssize_t i = 0; !failed && i < PyList_GET_SIZE(found); i++) { /* which grows */
    PyObject *edges = SLOT(PyList_GET_ITEM(found, i), n_edges);
    for (Py_ssize_t k = 0; !failed && k < PyTuple_GET_SIZE(edges); k++) {
      PyObject *e = PyTuple_GET_ITEM(edges, k);
      failed = PyObject_TypeCheck(e, node_type) ? find(e, reached, found) : count_leaf(e, leaves);
    }
  }
  Py_XDECREF(found);
  return failed ? NULL : Py_NewRef(Py_None);
}

/* --- where gradients go -------------------------------------------------------------------------------------- */
/* `Walk._finish_leaf`. -1: an error. */
static int finish_leaf(PyObject *walk, PyObject *entry) {
  PyObject *leaf = PyList_GET_ITEM(entry, 0), *g = PyList_GET_ITEM(entry, 1);
  if (g == Py_None) return 0;
  int usual = PyList_GET_ITEM(entry, 2) == Py_True && SLOT(leaf, t_hooks) == Py_None && SLOT(leaf, t_grad) == Py_None &&
              SLOT(g, t_layout) == SLOT(leaf, t_layout);
  PyObject *done;
  if (usual) { /* a first gradient, which becomes `leaf.grad` */
    if (!(done = PyObject_CallNoArgs(lock))) return -1;
    Py_DECREF(done);
    usual = SLOT(leaf, t_grad) == Py_None && SLOT(leaf, t_requires) == Py_True && SLOT(leaf, t_node) == Py_None;
    if (usual) {
      replace(leaf, t_grad, Py_NewRef(g));
      PyList_SetItem(entry, 1, Py_NewRef(Py_None));
    }
    if (!(done = PyObject_CallNoArgs(unlock))) return -1;
    Py_DECREF(done);
    if (usual) return 0;
  }
  done = PyObject_CallMethodOneArg(walk, finish_name, entry);
  Py_XDECREF(done);
  return done ? 0 : -1;
}

static int to_leaf(PyObject *walk, PyObject *leaf, PyObject *g, PyObject *own) {
  PyObject *id = PyLong_FromVoidPtr(leaf), *entry = id ? PyDict_GetItemWithError(SLOT(walk, k_leaves), id) : NULL;
  if (id && !entry && !PyErr_Occurred()) PyErr_SetObject(PyExc_KeyError, id);
  Py_XDECREF(id);
  if (!entry) return -1; /* else it stays in `leaves` as long as the walk */
  if (g != Py_None && PyList_GET_ITEM(entry, 1) == Py_None) {
    PyList_SetItem(entry, 1, Py_NewRef(g));
    PyList_SetItem(entry, 2, Py_NewRef(own));
  } else if (g != Py_None) {
    PyObject *have = PyList_GET_ITEM(entry, 1), *is_own = PyList_GET_ITEM(entry, 2);
    PyObject *sum = PyObject_CallMethodObjArgs(walk, sum_name, have, is_own, g, NULL);
    if (!sum) return -1;
    PyList_SetItem(entry, 1, Py_NewRef(PyTuple_GET_ITEM(sum, 0)));
    PyList_SetItem(entry, 2, Py_NewRef(PyTuple_GET_ITEM(sum, 1)));
    Py_DECREF(sum);
  }
  PyObject *left = PyNumber_Subtract(PyList_GET_ITEM(entry, 3), one);
  if (!left) return -1;
  PyList_SetItem(entry, 3, left);
  int last = PyObject_IsTrue(left);
  return last ? last < 0 ? -1 : 0 : finish_leaf(walk, entry);
}

static int to_node(PyObject *walk, PyObject *node, PyObject *g, PyObject *own) {
  PyObject *pending = SLOT(walk, k_pending), *key = SLOT(node, n_key), *done;
  if (Py_TYPE(node) == node_type && !PyDict_GetItemWithError(pending, key)) {
    if (PyErr_Occurred()) return -1;
    PyObject *pushed[] = {SLOT(walk, k_heap), key}, *entry = PyList_New(3);
    if (!entry) return -1;
    PyList_SET_ITEM(entry, 0, Py_NewRef(node));
    PyList_SET_ITEM(entry, 1, Py_NewRef(g));
    PyList_SET_ITEM(entry, 2, Py_NewRef(own));
    done = PyDict_SetItem(pending, key, entry) ? NULL : PyObject_Vectorcall(heap_push, pushed, 2, NULL);
    Py_DECREF(entry);
  } else {
    done = PyObject_CallMethodObjArgs(walk, send_name, node, g, own, NULL);
  }
  Py_XDECREF(done);
  return done ? 0 : -1;
}

/* --- one node ------------------------------------------------------------------------------------------------ */
static int unhooked(PyObject *node) {
  for (int k = 1; k <= 4; k++) /* hooks, retains, prehooks, posthooks */
    if (SLOT(node, n_none[k]) != Py_None) return 0;
  return 1;
}

/* Whether this is a node that the C form visits. -1: an error. */
static int usual(PyObject *walk, PyObject *node, PyObject *g) {
  if (Py_TYPE(node) != node_type || !PyObject_TypeCheck(g, tensor_type)) return 0;
  PyTypeObject *kind = Py_TYPE(SLOT(node, n_rule));
  if ((kind != pointwise_rule && kind != formula_rule) || SLOT(node, n_saved) == Py_None || !unhooked(node)) return 0;
  if (PyDict_GetItemWithError(engine_names, watch_name) != Py_None) return 0;
  PyObject *mode;
  if (PyContextVar_Get(mode_variable, NULL, &mode)) return -1;
  Py_DECREF(mode);
  return mode == SLOT(walk, k_mode); /* else the user's own code left another behind */
}

/* Whether `fold` may take the node below: it decides the rest. */
static int may_fold(PyObject *node) {
  PyObject *rule = SLOT(node, n_rule), *fold = Py_TYPE(rule) == formula_rule ? SLOT(rule, f_fold) : Py_None;
  if (fold == Py_None) return 0;
  PyObject *below = PyTuple_GET_ITEM(SLOT(node, n_edges), PyLong_AsSsize_t(PyTuple_GET_ITEM(fold, 0)));
  if (Py_TYPE(below) != node_type || Py_TYPE(SLOT(below, n_rule)) != pointwise_rule) return 0;
  return SLOT(SLOT(below, n_rule), w_foldable) != Py_False;
}

/* `Walk._visit`; g is stolen. -1: an error. */
static int visit(PyObject *walk, PyObject *node, PyObject *g) {
  PyObject *rule = SLOT(node, n_rule), *edges = Py_NewRef(SLOT(node, n_edges)), *results = NULL;
  if (may_fold(node)) {
    PyObject *fold = PyDict_GetItemWithError(engine_names, fold_name);
    PyObject *both = PyObject_CallFunctionObjArgs(fold, walk, node, g, NULL);
    if (!both) goto fail;
    if (both != Py_None) {
      Py_SETREF(edges, Py_NewRef(PyTuple_GET_ITEM(both, 0)));
      results = Py_NewRef(PyTuple_GET_ITEM(both, 1));
    }
    Py_DECREF(both);
  }
  if (!results) {
    PyObject *given[] = {node, rule, g, Py_None};
    results = Py_TYPE(rule) == pointwise_rule ? pointwise(NULL, given, 3) : formulas(NULL, given, 4);
  }
  if (!results) goto fail;
  Py_CLEAR(g);
  int retain = PyObject_IsTrue(SLOT(walk, k_retain));
  if (!retain && SLOT(node, n_saved) != Py_None && PyTuple_GET_SIZE(SLOT(node, n_saved))) {
    if (SLOT(node, n_none[7]) != Py_None) { /* lent */
      PyObject *done = PyObject_CallOneArg(PyDict_GetItemString(graph, "settle_lent"), node);
      if (!done) goto fail;
      Py_DECREF(done);
    }
    replace(node, n_saved, Py_NewRef(Py_None));
  }
  PyObject *mode;
  if (PyContextVar_Get(mode_variable, NULL, &mode)) goto fail;
  Py_DECREF(mode);
  if (mode != SLOT(walk, k_mode)) { /* by an unpack hook */
    PyObject *token = PyContextVar_Set(mode_variable, SLOT(walk, k_mode));
    if (!token) goto fail;
    Py_DECREF(token);
  }
  if (Py_SIZE(edges) != PyList_GET_SIZE(results)) {
    PyErr_Format(PyExc_ValueError, "%zd gradients for %zd edges", PyList_GET_SIZE(results), Py_SIZE(edges));
    goto fail;
  }
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(results); i++) {
    PyObject *pair = PyList_GET_ITEM(results, i), *to = item(edges, i);
    PyObject *gradient = PyTuple_GET_ITEM(pair, 0), *own = PyTuple_GET_ITEM(pair, 1);
    int failed = PyObject_TypeCheck(to, node_type) ? to_node(walk, to, gradient, own)
                                                   : to_leaf(walk, to, gradient, own);
    if (failed) goto fail;
  }
  Py_DECREF(edges); Py_DECREF(results);
  return 0;
fail:
  Py_XDECREF(g); Py_DECREF(edges); Py_XDECREF(results);
  return -1;
}

static PyObject *advance(PyObject *module, PyObject *walk) {
  if (!PyObject_TypeCheck(walk, walk_type)) return PyErr_Format(PyExc_TypeError, "advance: expected a Walk");
  if (SLOT(walk, k_create) != Py_False || SLOT(walk, k_capture) != Py_None) Py_RETURN_FALSE;
  PyObject *heap = SLOT(walk, k_heap), *pending = SLOT(walk, k_pending);
  for (int left = AT_ONCE; left && PyList_GET_SIZE(heap); left--) {
    if (PyErr_CheckSignals()) return NULL;
    PyObject *entry = PyDict_GetItemWithError(pending, PyList_GET_ITEM(heap, 0));
    int ours = entry ? usual(walk, PyList_GET_ITEM(entry, 0), PyList_GET_ITEM(entry, 1)) : 0;
    if (ours < 0) return NULL;
    if (!ours) Py_RETURN_FALSE;
    PyObject *node = Py_NewRef(PyList_GET_ITEM(entry, 0)), *g = Py_NewRef(PyList_GET_ITEM(entry, 1));
    PyObject *key = PyObject_CallOneArg(heap_pop, heap);
    int failed = !key || PyDict_DelItem(pending, key); /* here, so that nobody else holds g while the node runs */
    Py_XDECREF(key);
    if (failed) Py_DECREF(g);
    else failed = visit(walk, node, g);
    Py_DECREF(node);
    if (failed) return NULL;
  }
  Py_RETURN_TRUE;
}

static PyMethodDef engine_functions[] = {
  {"survey", (PyCFunction)(void (*)(void))survey, METH_FASTCALL, "Find the nodes and leaves behind the roots."},
  {"advance", advance, METH_O, "Visit nodes, the youngest first; False if the youngest is left to Python."},
};

static PyObject *setup_engine(PyObject *module, PyObject *args) {
  PyObject *walk;
  if (!PyArg_ParseTuple(args, "OOOOOO", &walk, &engine_names, &heap_pop, &heap_push, &lock, &unlock))
    return NULL;
  struct { Py_ssize_t *at; const char *name; } wanted[] = {
    {&k_retain, "retain"}, {&k_create, "create"}, {&k_mode, "mode"}, {&k_capture, "capture"},
    {&k_reached, "reached"}, {&k_heap, "heap"}, {&k_pending, "pending"}, {&k_leaves, "leaves"},
  };
  for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
    if ((*wanted[i].at = offset(walk, wanted[i].name)) < 0) return NULL;
  walk_type = (PyTypeObject *)Py_NewRef(walk);
  Py_INCREF(engine_names); Py_INCREF(heap_pop); Py_INCREF(heap_push); Py_INCREF(lock); Py_INCREF(unlock);
  struct { PyObject **at; const char *text; } names[] = {
    {&watch_name, "watch"}, {&fold_name, "fold"}, {&send_name, "_send"}, {&sum_name, "_sum"},
    {&finish_name, "_finish_leaf"},
  };
  for (size_t i = 0; i < sizeof names / sizeof *names; i++)
    if (!(*names[i].at = PyUnicode_InternFromString(names[i].text))) return NULL;
  PyObject *first = PyCFunction_New(&engine_functions[0], NULL);
  PyObject *second = PyCFunction_New(&engine_functions[1], NULL);
  return first && second ? Py_BuildValue("NN", first, second) : NULL;
}
