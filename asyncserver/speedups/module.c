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

static const Function *const functions[] = {life_functions, poller_functions, receive_functions, send_functions, NULL};
static const Class *const classes[] = {field_classes, datagram_classes, NULL};

static int is_name(PyObject *name, const char *text) {
    return PyUnicode_Check(name) && PyUnicode_CompareWithASCIIString(name, text) == 0;
}

/* A type that takes a class's place; the state keeps it, for checks. */
static PyObject *class_new(PyObject *module, const Class *class) {
    PyTypeObject **kept = (PyTypeObject **)((char *)PyModule_GetState(module) + class->type);
    PyObject *type = PyType_FromModuleAndSpec(module, class->spec, NULL);
    if (type != NULL)
        Py_XSETREF(*kept, (PyTypeObject *)Py_NewRef(type));
    return type;
}

/* accelerate(definition): what is compiled in its place. */
static PyObject *accelerate(PyObject *module, PyObject *definition) {
    PyObject *name = PyObject_GetAttrString(definition, "__qualname__"), *made = NULL;
    if (name == NULL)
        return NULL;
    for (int i = 0; functions[i] != NULL; i++)
        for (const Function *one = functions[i]; one->name != NULL; one++)
            if (is_name(name, one->name)) {
                made = method_new(module, definition, one->call);
                goto found;
            }
    for (int i = 0; classes[i] != NULL; i++)
        for (const Class *one = classes[i]; one->name != NULL; one++)
            if (is_name(name, one->name)) {
                made = class_new(module, one);
                goto found;
            }
    PyErr_Format(PyExc_LookupError, "nothing is compiled for %R", definition);
found:
    Py_DECREF(name);
    return made;
}

static PyObject *import_from(const char *module, const char *name) {
    PyObject *imported = PyImport_ImportModule(module);
    PyObject *found = imported == NULL ? NULL : PyObject_GetAttrString(imported, name);
    Py_XDECREF(imported);
    return found;
}

static int module_exec(PyObject *module) {
#define NAME_TEXT(name) #name,
    static const char *const names[NAME_COUNT] = {NAMES(NAME_TEXT)};
    State *state = PyModule_GetState(module);
    for (int i = 0; i < NAME_COUNT; i++)
        if ((state->names[i] = PyUnicode_InternFromString(names[i])) == NULL)
            return -1;
    if ((state->blocked = Py_BuildValue("(s)", "blocked")) == NULL ||
        (state->socket = import_from("socket", "socket")) == NULL ||
        (state->end_of_stream = import_from("anyio", "EndOfStream")) == NULL)
        return -1;
    if ((state->scratch = PyMem_Malloc(ANY)) == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    state->method = (PyTypeObject *)PyType_FromModuleAndSpec(module, &method_spec, NULL);
    state->operation = (PyTypeObject *)PyType_FromModuleAndSpec(module, &operation_spec, NULL);
    if (state->method == NULL || state->operation == NULL)
        return -1;
    return PyModule_AddStringConstant(module, "stamp", STAMP); /* sources.py compares it */
}

static int module_traverse(PyObject *module, visitproc visit, void *arg) {
    State *state = PyModule_GetState(module);
    Py_VISIT(state->method);
    Py_VISIT(state->operation);
    Py_VISIT(state->waiter);
    Py_VISIT(state->connection);
    Py_VISIT(state->datagram);
    Py_VISIT(state->ring);
    Py_VISIT(state->batch);
    Py_VISIT(state->seen_waiter);
    Py_VISIT(state->seen_connection);
    Py_VISIT(state->end_of_stream);
    Py_VISIT(state->socket);
    Py_VISIT(state->stop);
    return 0;
}

static int module_clear(PyObject *module) {
    State *state = PyModule_GetState(module);
    operations_forget(state);
    Py_CLEAR(state->method);
    Py_CLEAR(state->operation);
    Py_CLEAR(state->waiter);
    Py_CLEAR(state->connection);
    Py_CLEAR(state->datagram);
    Py_CLEAR(state->ring);
    Py_CLEAR(state->batch);
    Py_CLEAR(state->seen_waiter);
    Py_CLEAR(state->seen_connection);
    Py_CLEAR(state->end_of_stream);
    Py_CLEAR(state->socket);
    Py_CLEAR(state->stop);
    return 0;
}

static void module_free(void *module) {
    State *state = PyModule_GetState(module);
    module_clear(module);
    for (int i = 0; i < NAME_COUNT; i++)
        Py_CLEAR(state->names[i]);
    Py_CLEAR(state->blocked);
    PyMem_Free(state->scratch);
    state->scratch = NULL;
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
