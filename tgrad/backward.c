/* How one node goes backward, in C: `_pointwise` and `_formulas` of backward.py, for a backward that is not recorded.
 *
 * Compiled together with eager.c, whose names it uses. setup_backward(...) takes the classes and the Python forms,
 * which serve while the backward is recorded. What somebody listens to, or what is not kept as it was, Python unpacks.
 */
static PyTypeObject *pointwise_rule, *formula_rule;
static PyObject *pointwise_otherwise, *formulas_otherwise, *plan_steps, *fit, *saved_unpack, *unpack_name;
static Py_ssize_t w_parts, w_plans, w_foldable, f_fold, f_plain;

static int recording(void) { /* -1: an error */
  PyObject *mode;
  if (PyContextVar_Get(mode_variable, NULL, &mode)) return -1;
  int records = SLOT(mode, m_record) != Py_False;
  Py_DECREF(mode);
  return records;
}

/* Whether `Saved.unpack` would do no more than look at it: nobody listens, and nothing was written since. */
static int as_saved(PyObject *s) {
  if (Py_TYPE(s) != saved_type || PyDict_GetItemWithError(saved_type->tp_dict, unpack_name) != saved_unpack) return 0;
  PyObject *now = SLOT(SLOT(s, s_version), v_value), *then = SLOT(s, s_expected);
  return now == then || PyObject_RichCompareBool(now, then, Py_EQ) == 1;
}

/* `Saved.unpack` of graph.py. */
static PyObject *unpack(PyObject *s, PyObject *node) {
  if (!as_saved(s)) return PyObject_CallMethodOneArg(s, unpack_name, node);
  PyObject *edge = SLOT(s, s_edge) == itself ? node : SLOT(s, s_edge);
  if (PyObject_TypeCheck(edge, tensor_type)) { /* a leaf: itself, unless it has other memory by now */
    int same = SLOT(edge, t_layout) == SLOT(s, s_layout);
    if (same && PyObject_RichCompareBool(SLOT(edge, t_ptr), SLOT(s, s_ptr), Py_EQ) == 1) return Py_NewRef(edge);
    return PyObject_CallMethodOneArg(s, unpack_name, node);
  }
  PyObject *t = tensor_type->tp_alloc(tensor_type, 0);
  if (!t) return NULL;
  put(t, t_layout, SLOT(s, s_layout));
  put(t, t_storage, SLOT(s, s_storage));
  put(t, t_ptr, SLOT(s, s_ptr));
  put(t, t_version, SLOT(s, s_version));
  put(t, t_requires, edge == Py_None ? Py_False : Py_True);
  put(t, t_node, edge);
  put(t, t_grad, Py_None);
  put(t, t_alias, Py_None);
  put(t, t_hooks, Py_None);
  return t;
}

static PyObject *gradient(PyObject *stolen, int own) { /* a pair, as `Gradient` of backward.py */
  PyObject *pair = stolen ? PyTuple_New(2) : NULL;
  if (!pair) {
    Py_XDECREF(stolen);
    return NULL;
  }
  PyTuple_SET_ITEM(pair, 0, stolen);
  PyTuple_SET_ITEM(pair, 1, Py_NewRef(own ? Py_True : Py_False));
  return pair;
}

/* One Step of a plan: puts the gradients that it makes where they belong in `results`. -1: an error. */
static int run_step(PyObject *step, PyObject *g, PyObject *values, PyObject *results) {
  PyObject *places = PyTuple_GET_ITEM(step, 0), *layouts = PyTuple_GET_ITEM(step, 1);
  PyObject *tensors = PyTuple_GET_ITEM(step, 3), *numbers = PyTuple_GET_ITEM(step, 4);
  Py_ssize_t n_made = PyTuple_GET_SIZE(layouts), n_tensors = PyTuple_GET_SIZE(tensors), given = 0;
  PyObject *arguments[n_made + 1 + n_tensors + PyTuple_GET_SIZE(numbers)];
  for (Py_ssize_t k = 0; k < n_made; k++) {
    PyObject *wanted[] = {PyTuple_GET_ITEM(layouts, k), Py_False}, *t = empty(NULL, wanted, 2, NULL);
    if (t) arguments[given++] = SLOT(t, t_ptr);
    PyObject *pair = gradient(t, 1);
    if (!pair || PyList_SetItem(results, PyLong_AsSsize_t(PyTuple_GET_ITEM(places, k)), pair)) return -1;
  }
  arguments[given++] = SLOT(g, t_ptr);
  for (Py_ssize_t k = 0; k < n_tensors; k++) {
    PyObject *v = PyList_GET_ITEM(values, PyLong_AsSsize_t(PyTuple_GET_ITEM(tensors, k)));
    arguments[given++] = SLOT(v, PyObject_TypeCheck(v, saved_type) ? s_ptr : t_ptr);
  }
  for (Py_ssize_t k = 0; k < PyTuple_GET_SIZE(numbers); k++)
    arguments[given++] = PyList_GET_ITEM(values, PyLong_AsSsize_t(PyTuple_GET_ITEM(numbers, k)));
  PyObject *done = PyObject_Vectorcall(PyTuple_GET_ITEM(step, 2), arguments, given, NULL);
  Py_XDECREF(done);
  return done ? 0 : -1;
}

static PyObject *pointwise(PyObject *module, PyObject *const *args, Py_ssize_t count) {
  int records = count == 3 && SLOT(args[0], n_saved) != Py_None ? recording() : 1;
  if (records < 0) return NULL;
  if (records) return PyObject_Vectorcall(pointwise_otherwise, args, count, NULL);
  PyObject *node = args[0], *rule = args[1], *g = args[2], *results = NULL, *steps = NULL;
  PyObject *saved = Py_NewRef(SLOT(node, n_saved)), *numbers = SLOT(node, n_numbers);
  Py_ssize_t n = PyTuple_GET_SIZE(saved), m = PyTuple_GET_SIZE(numbers);
  PyObject *values = PyList_New(n + m), *key = PyTuple_New(1 + n);
  if (!values || !key) goto done;
  PyTuple_SET_ITEM(key, 0, Py_NewRef(SLOT(g, t_layout)));
  for (Py_ssize_t k = 0; k < n; k++) { /* of most, the address and the layout are all it takes */
    PyObject *s = PyTuple_GET_ITEM(saved, k);
    PyObject *v = as_saved(s) ? Py_NewRef(s) : PyObject_CallMethodOneArg(s, unpack_name, node);
    if (!v) goto done;
    PyList_SET_ITEM(values, k, v);
    PyTuple_SET_ITEM(key, 1 + k, Py_NewRef(SLOT(v, v == s ? s_layout : t_layout)));
  }
  for (Py_ssize_t k = 0; k < m; k++) PyList_SET_ITEM(values, n + k, Py_NewRef(PyTuple_GET_ITEM(numbers, k)));
  steps = Py_XNewRef(PyDict_GetItemWithError(SLOT(rule, w_plans), key));
  if (!steps && !PyErr_Occurred()) steps = PyObject_CallFunctionObjArgs(plan_steps, node, rule, g, values, key, NULL);
  results = steps ? PyList_New(PyList_GET_SIZE(SLOT(rule, w_parts))) : NULL;
  for (Py_ssize_t k = 0; results && k < PyTuple_GET_SIZE(steps); k++)
    if (run_step(PyTuple_GET_ITEM(steps, k), g, values, results)) Py_CLEAR(results);
  for (Py_ssize_t k = 0; results && k < PyList_GET_SIZE(results); k++)
    if (!PyList_GET_ITEM(results, k)) { /* there is nothing to compute: g itself */
      PyObject *pair = gradient(Py_NewRef(g), 0);
      if (pair) PyList_SET_ITEM(results, k, pair);
      else Py_CLEAR(results);
    }
done:
  Py_DECREF(saved); Py_XDECREF(values); Py_XDECREF(key); Py_XDECREF(steps);
  return results;
}

/* formula(g, *[values[k] for k in at], *further) */
static PyObject *call(PyObject *formula, PyObject *g, PyObject *values, PyObject *at, PyObject *further) {
  Py_ssize_t n = PyTuple_GET_SIZE(at), more = further ? PyTuple_GET_SIZE(further) : 0;
  Py_ssize_t last = PyList_GET_SIZE(values) - 1; /* None, for what is absent */
  PyObject *arguments[1 + n + more];
  arguments[0] = g;
  for (Py_ssize_t k = 0; k < n; k++) {
    Py_ssize_t i = PyLong_AsSsize_t(PyTuple_GET_ITEM(at, k));
    arguments[1 + k] = PyList_GET_ITEM(values, i < 0 ? last : i);
  }
  for (Py_ssize_t k = 0; k < more; k++) arguments[1 + n + k] = PyTuple_GET_ITEM(further, k);
  return PyObject_Vectorcall(formula, arguments, 1 + n + more, NULL);
}

/* Whether a result's memory is that of g, of a saved tensor or of a gradient made before. */
static int is_held(PyObject *result, PyObject *g, PyObject *values, Py_ssize_t n, PyObject *results, Py_ssize_t made) {
  PyObject *storage = SLOT(result, t_storage);
  if (storage == SLOT(g, t_storage)) return 1;
  for (Py_ssize_t k = 0; k < n; k++)
    if (SLOT(PyList_GET_ITEM(values, k), t_storage) == storage) return 1;
  for (Py_ssize_t k = 0; k < made; k++) {
    PyObject *other = PyTuple_GET_ITEM(PyList_GET_ITEM(results, k), 0);
    if (other != Py_None && SLOT(other, t_storage) == storage) return 1;
  }
  return 0;
}

/* What `joint` gave for call i; borrowed, NULL if it gives nothing for it. */
static PyObject *given_for(Py_ssize_t i, PyObject *joint, PyObject *together) {
  if (!together) return NULL;
  PyObject *positions = PyTuple_GET_ITEM(joint, 0);
  for (Py_ssize_t k = 0; k < Py_SIZE(together) && k < PyTuple_GET_SIZE(positions); k++)
    if (PyLong_AsSsize_t(PyTuple_GET_ITEM(positions, k)) == i) return item(together, k);
  return NULL;
}

/* The layout and dtype of the input, whatever a formula returned; `result` is stolen. */
static PyObject *fitted(PyObject *result, PyObject *like) {
  if (!result || result == Py_None) return result;
  PyObject *new = NULL;
  if (!PyObject_TypeCheck(result, tensor_type)) {
    PyErr_Format(PyExc_TypeError, "a formula returned %.100s, expected a Tensor", Py_TYPE(result)->tp_name);
  } else if (SLOT(result, t_layout) == like) {
    return result;
  } else {
    PyObject *pair = PyObject_CallFunctionObjArgs(fit, result, like, Py_False, NULL);
    new = pair ? Py_NewRef(PyTuple_GET_ITEM(pair, 0)) : NULL;
    Py_XDECREF(pair);
  }
  Py_DECREF(result);
  return new;
}

static PyObject *formulas(PyObject *module, PyObject *const *args, Py_ssize_t count) {
  int usual = count == 4 && SLOT(args[0], n_saved) != Py_None && SLOT(args[1], f_plain) != Py_None;
  int records = usual ? recording() : 1;
  if (records < 0) return NULL;
  if (records) return PyObject_Vectorcall(formulas_otherwise, args, count, NULL); /* which also decides `plain` */
  PyObject *node = args[0], *rule = args[1], *g = args[2], *further = args[3] == Py_None ? NULL : args[3];
  PyObject *saved = Py_NewRef(SLOT(node, n_saved)), *numbers = SLOT(node, n_numbers), *plain = SLOT(rule, f_plain);
  PyObject *calls = PyTuple_GET_ITEM(plain, 0), *joint = PyTuple_GET_ITEM(plain, 1), *fold = SLOT(rule, f_fold);
  Py_ssize_t n = PyTuple_GET_SIZE(saved), m = PyTuple_GET_SIZE(numbers), n_calls = PyTuple_GET_SIZE(calls);
  Py_ssize_t folded = further && fold != Py_None ? PyLong_AsSsize_t(PyTuple_GET_ITEM(fold, 0)) : -1;
  PyObject *values = PyList_New(n + m + 1), *results = NULL, *together = NULL;
  if (!values) goto done;
  PyList_SET_ITEM(values, n + m, Py_NewRef(Py_None));
  for (Py_ssize_t k = 0; k < m; k++) PyList_SET_ITEM(values, n + k, Py_NewRef(PyTuple_GET_ITEM(numbers, k)));
  for (Py_ssize_t k = 0; k < n; k++) {
    PyObject *v = unpack(PyTuple_GET_ITEM(saved, k), node);
    if (!v) goto done;
    PyList_SET_ITEM(values, k, v);
  }
  if (joint != Py_None) {
    together = call(PyTuple_GET_ITEM(joint, 1), g, values, PyTuple_GET_ITEM(joint, 2), NULL);
    if (!together) goto done;
    if (together == Py_None) Py_CLEAR(together);
    else Py_SETREF(together, PySequence_Fast(together, "expected the gradients of several inputs"));
    if (PyErr_Occurred()) goto done;
  }
  results = PyList_New(n_calls);
  for (Py_ssize_t i = 0; results && i < n_calls; i++) {
    PyObject *one_call = PyTuple_GET_ITEM(calls, i), *at = PyTuple_GET_ITEM(one_call, 2);
    PyObject *result = Py_XNewRef(given_for(i, joint, together));
    if (!result) result = i == folded ? call(PyTuple_GET_ITEM(fold, 1), g, values, at, further)
                                      : call(PyTuple_GET_ITEM(one_call, 1), g, values, at, NULL);
    result = fitted(result, PyTuple_GET_ITEM(one_call, 0));
    int own = result && result != Py_None && SLOT(result, t_alias) == Py_None;
    if (own) own = !is_held(result, g, values, n, results, i);
    PyObject *pair = gradient(result, own);
    if (pair) PyList_SET_ITEM(results, i, pair);
    else Py_CLEAR(results);
  }
done:
  Py_DECREF(saved); Py_XDECREF(values); Py_XDECREF(together);
  return results;
}

static PyMethodDef backward_functions[] = {
  {"pointwise", (PyCFunction)(void (*)(void))pointwise, METH_FASTCALL, "The gradients of a PointwiseRule's node."},
  {"formulas", (PyCFunction)(void (*)(void))formulas, METH_FASTCALL, "The gradients of a FormulaRule's node."},
};

static PyObject *setup_backward(PyObject *module, PyObject *args) {
  PyObject *by_expressions, *by_formulas;
  if (!PyArg_ParseTuple(args, "OOOOOO", &by_expressions, &by_formulas, &pointwise_otherwise, &formulas_otherwise,
                        &plan_steps, &fit)) return NULL;
  struct { Py_ssize_t *at; PyObject *type; const char *name; } wanted[] = {
    {&w_parts, by_expressions, "parts"}, {&w_plans, by_expressions, "plans"}, {&w_foldable, by_expressions, "foldable"},
    {&f_fold, by_formulas, "fold"}, {&f_plain, by_formulas, "plain"},
  };
  for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
    if ((*wanted[i].at = offset(wanted[i].type, wanted[i].name)) < 0) return NULL;
  pointwise_rule = (PyTypeObject *)Py_NewRef(by_expressions);
  formula_rule = (PyTypeObject *)Py_NewRef(by_formulas);
  Py_INCREF(pointwise_otherwise); Py_INCREF(formulas_otherwise); Py_INCREF(plan_steps); Py_INCREF(fit);
  unpack_name = PyUnicode_InternFromString("unpack");
  saved_unpack = unpack_name ? PyObject_GetAttr((PyObject *)saved_type, unpack_name) : NULL;
  PyObject *first = PyCFunction_New(&backward_functions[0], NULL);
  PyObject *second = PyCFunction_New(&backward_functions[1], NULL);
  return saved_unpack && first && second ? Py_BuildValue("NN", first, second) : NULL;
}
