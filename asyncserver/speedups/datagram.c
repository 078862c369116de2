/* DatagramFields: what a Datagram consists of; its address is made from the kernel's when somebody asks for it.
 *
 * Most handlers never ask: they return their answer, which goes to the name that the datagram came with.
 */
#include "datagrams.h"
#include <arpa/inet.h>

/* As makesockaddr() in CPython's Modules/socketmodule.c. */
PyObject *address_of(const Name *name) {
    char host[INET6_ADDRSTRLEN];
    if (name->any.sa_family == AF_INET) {
        inet_ntop(AF_INET, &name->in.sin_addr, host, sizeof host);
        return Py_BuildValue("si", host, ntohs(name->in.sin_port));
    }
    const struct sockaddr_in6 *in6 = &name->in6;
    inet_ntop(AF_INET6, &in6->sin6_addr, host, sizeof host);
    return Py_BuildValue("siII", host, ntohs(in6->sin6_port), ntohl(in6->sin6_flowinfo), in6->sin6_scope_id);
}

static PyObject *get_address(Datagram *self, void *Py_UNUSED(closure)) {
    if (!self->address && self->name_length)
        self->address = address_of(&self->name);
    if (!self->address && !PyErr_Occurred())
        PyErr_SetString(PyExc_AttributeError, "address");
    return Py_XNewRef(self->address);
}

/* From now on answers go to this one. */
static int set_address(Datagram *self, PyObject *address, void *Py_UNUSED(closure)) {
    self->name_length = 0;
    Py_XSETREF(self->address, Py_XNewRef(address));
    return 0;
}

#define ALL_OBJECTS(X) DATAGRAM_OBJECTS(X) X(address, )
LIFE(Datagram, datagram, ALL_OBJECTS)

/* T_OBJECT_EX, as `__slots__` are: LOAD_ATTR_SLOT is for it alone, Python/specialize.c. */
#define MEMBER(field, name) {name, T_OBJECT_EX, offsetof(Datagram, field), 0, NULL},
static PyMemberDef datagram_members[] = {
    DATAGRAM_OBJECTS(MEMBER)
    {"replied", T_BOOL, offsetof(Datagram, replied), 0, NULL},
    {"truncated", T_BOOL, offsetof(Datagram, truncated), 0, NULL},
    {0},
};
static PyGetSetDef getset[] = {{"address", (getter)get_address, (setter)set_address, NULL, NULL}, {0}};
static PyType_Slot slots[] = {SLOTS(datagram, "What a datagram consists of."), {Py_tp_getset, getset}, {0, NULL}};
PyType_Spec datagram_spec = {"asyncserver.datagrams.datagram.DatagramFields", sizeof(Datagram), 0, FLAGS, slots};
