/* The extension module: `accelerate()`, and the state that all its files share.
 *
 * Theory of operation. Python classes stay as they are written. Where one stands under `@accelerate`, a type takes its
 * place that has the same attributes, but in a struct, so that C and Python both reach them; where a function does, a
 * Method (method.c). So all behaviour has its definition in Python, classes inherit and override as ever, and C leaves
 * to the Python function whatever is not its usual case.
 *
 * Multi-phase initialisation (PEP 489); all state is the module's (PEP 630), so that each subinterpreter has its own.
 * Free-threaded Pythons get no extension (hatch_build.py): the GIL is what guards it.
 */
#include "speedups.h"

#ifdef Py_GIL_DISABLED
#error "asyncserver's extension relies on the GIL; free-threaded Pythons use the Python code"
#endif

static const Function *const functions[] = {NULL};
static const Class *const classes[] = {NULL};

static int
is_name(PyObject *name, const char *text)
{
    return PyUnicode_Check(name) && PyUnicode_CompareWithASCIIString(name, text) == 0;
}

/* accelerate(definition): what is compiled in its place. */
static PyObject *
accelerate(PyObject *module, PyObject *definition)
{
    PyObject *name = PyObject_GetAttrString(definition, "__qualname__"), *found = NULL;
    if (name == NULL)
        return NULL;
    for (int i = 0; found == NULL && functions[i] != NULL; i++)
        for (const Function *one = functions[i]; found == NULL && one->name != NULL; one++)
            if (is_name(name, one->name) && (found = method_new(module, definition, one->call)) == NULL)
                goto failed;
    for (int i = 0; found == NULL && classes[i] != NULL; i++)
        for (const Class *one = classes[i]; found == NULL && one->name != NULL; one++)
            if (is_name(name, one->name) && (found = PyType_FromModuleAndSpec(module, one->spec, NULL)) == NULL)
                goto failed;
    if (found == NULL)
        PyErr_Format(PyExc_LookupError, "nothing is compiled for %R", definition);
failed:
    Py_DECREF(name);
    return found;
}

static int
module_exec(PyObject *module)
{
    State *state = PyModule_GetState(module);
    state->method = (PyTypeObject *)PyType_FromModuleAndSpec(module, &method_spec, NULL);
    if (state->method == NULL)
        return -1;
    return PyModule_AddStringConstant(module, "stamp", STAMP); /* sources.py compares it */
}

static int
module_traverse(PyObject *module, visitproc visit, void *arg)
{
    State *state = PyModule_GetState(module);
    Py_VISIT(state->method);
    return 0;
}

static int
module_clear(PyObject *module)
{
    State *state = PyModule_GetState(module);
    Py_CLEAR(state->method);
    return 0;
}

static void
module_free(void *module)
{
    module_clear(module);
}

static PyMethodDef module_methods[] = {
    {"accelerate", accelerate, METH_O, NULL},
    {0},
};

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
#if PY_VERSION_HEX >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
#if PY_VERSION_HEX >= 0x030D0000
    {Py_mod_gil, Py_MOD_GIL_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "asyncserver.speedups._compiled",
    .m_size = sizeof(State),
    .m_methods = module_methods,
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC
PyInit__compiled(void)
{
    return PyModuleDef_Init(&definition);
}
